"""Standard input that a signal ends: a load waits for the thread that reads, and a pipe may stay silent for ever."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, cast

__all__ = ["standard_input"]

#: Signals that end the program; see :mod:`layerfs_cli.main`.
_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class _InterruptedInput(io.RawIOBase):
    """Reads a descriptor until it ends or a byte that stands for an ending signal arrives on another one."""

    def __init__(self, descriptor: int, wakeup: socket.socket) -> None:
        self._descriptor = descriptor
        self._wakeup = wakeup
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(wakeup, select.POLLIN)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, as many as there are; none at the end.

        Raises:
            InterruptedError: a signal arrived; the main thread is already ending the program because of it.
        """
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll()]
            if self._wakeup.fileno() in ready and _ENDING & set(self._wakeup.recv(64)):
                raise InterruptedError("standard input: a signal arrived")
            if self._descriptor in ready:
                return os.read(self._descriptor, size if size >= 0 else 1 << 20)


@contextmanager
def standard_input() -> Iterator[BinaryIO]:
    """Return standard input as a stream to load from. Only in the main thread."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.settimeout(0)
        sender.settimeout(0)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield cast("BinaryIO", _InterruptedInput(sys.stdin.fileno(), receiver))
        finally:
            signal.set_wakeup_fd(before)
