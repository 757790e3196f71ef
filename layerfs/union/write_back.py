"""Writing the bytes of copies back, a little after their names are there.

A copy whose name reaches the disk before its bytes would be an empty file after a power cut, and hide the one in the
image, though nobody had written to it. Journals order the two once the bytes are on their way; waiting for the disk, as
overlayfs does, costs milliseconds a file, and sending each copy off by itself doubles its price. So copies are sent off
together, a second later, and before anything else is made durable through the mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections import deque

from layerfs.linux.durable import await_writeback, start_writeback
from layerfs.union.limit import descriptor_share

__all__ = ["WriteBack"]

#: Seconds that a copy may wait; the kernel's own journals commit every five, its flusher looks after thirty.
_DELAY = 1.0

#: Copies that may wait: what a second brings.
_MOST = 4096


class WriteBack:
    """Copies that are to be written back, and the thread that does it.

    One thread adds and finishes. A process must not fork between the first :meth:`add` and :meth:`close`.
    """

    def __init__(self, delay: float = _DELAY) -> None:
        """Start with nothing; the thread is started with the first copy.

        Args:
            delay: seconds that a copy waits for others.
        """
        self._delay = delay
        self._most = descriptor_share(_MOST)
        self._waiting: deque[int] = deque()
        self._some, self._many = threading.Event(), threading.Event()
        self._taking = threading.Lock()  # whoever holds it has at most one copy in hand
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, fd: int) -> None:
        """Take note of a copy; where no more can be kept it is sent off at once.

        Args:
            fd: the file, open for writing; the caller may close it.
        """
        waiting = self._waiting
        if len(waiting) >= self._most:
            _start(fd)
            return
        try:
            if self._thread is None:
                self._thread = self._started(fd)
            waiting.append(os.dup(fd))
        except (OSError, RuntimeError):  # no descriptor, no thread: no reason to fail
            _start(fd)
            return
        count = len(waiting)
        if count == 1:
            self._some.set()
        elif 2 * count >= self._most:
            self._many.set()

    def finish(self) -> None:
        """Send off what waits, and wait until its bytes are on the disk; names are not looked at.

        What cannot be written is told to whoever makes that file durable.

        Blocking: waits for the device, if anything waits.
        """
        if not self._waiting and not self._taking.locked():
            return
        taken = []
        with self._taking:
            while self._waiting:
                taken.append(fd := self._waiting.popleft())
                _start(fd)
        for fd in taken:
            with contextlib.suppress(OSError):
                await_writeback(fd)
            os.close(fd)

    def close(self) -> None:
        """Send off what waits, and end the thread."""
        self._closed = True
        if self._thread is not None:
            self._some.set()
            self._many.set()
            self._thread.join()
        self._send(len(self._waiting))

    def _send(self, count: int) -> None:
        """Send off the oldest, at most so many."""
        for _ in range(count):
            with self._taking:
                if not self._waiting:
                    return
                fd = self._waiting.popleft()
                _start(fd)
            os.close(fd)

    def _started(self, fd: int) -> threading.Thread:
        """Start the thread, which takes no signals: those must interrupt the one that waits for requests.

        Args:
            fd: any descriptor.
        """
        # A table of descriptors that two threads share only grows after a grace period of the kernel, 10 ms each time
        # it doubles (fs/file.c, expand_fdtable). It is made large enough while there is but one.
        with contextlib.suppress(OSError):
            os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 2 * self._most))
        thread = threading.Thread(target=self._run, name="layerfs-write-back", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return thread

    def _run(self) -> None:
        while not self._closed:
            self._some.wait()
            self._many.wait(self._delay)
            self._some.clear()
            self._many.clear()
            self._send(len(self._waiting))
            if self._waiting:
                self._some.set()  # added meanwhile, when it was not the first


def _start(fd: int) -> None:
    """Start writing a file back, unless it is gone."""
    with contextlib.suppress(OSError):
        if os.fstat(fd).st_nlink:
            start_writeback(fd)
