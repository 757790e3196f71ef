"""Writing the bytes of copies back, a little after their names are there.

A copy whose name reaches the disk before its bytes would be an empty file after a power cut, or one of zeros, and hide
the one in the image, though nobody had written to it. Overlayfs waits for the disk with each copy, which costs
milliseconds. Here copies are written together, a second later, and before anything is made durable through the mount.
That leaves a second, and the time that the disk takes, in which others must not make the name durable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Hashable

from layerfs.linux.durable import await_writeback, start_writeback
from layerfs.union.limit import descriptor_share

__all__ = ["WriteBack"]

_log = logging.getLogger(__name__)

#: Seconds that a copy waits for others; journals commit every five, the kernel's own flusher takes thirty.
_DELAY = 1.0

#: Copies that may wait, with those that are being written: what two seconds bring.
_MOST = 8192

#: Seconds that are given to those that wait when all ends; the kernel writes the others when it likes.
_LAST = 1.0


class WriteBack:
    """Copies that are to be written back, and the thread that does it. The methods belong to one other thread."""

    def __init__(self, delay: float = _DELAY) -> None:
        """Start with nothing; the thread is started with the first copy.

        Args:
            delay: seconds that a copy waits for others.
        """
        self._delay = delay
        self._most = descriptor_share(_MOST) // 2
        self._waiting: dict[Hashable, int] = {}
        self._changing = threading.Lock()  # held while that changes
        self._writing = threading.Lock()  # held by whoever writes copies, from taking them to their last byte
        self._failed: dict[Hashable, int] = {}
        self._some, self._many = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, key: Hashable, fd: int) -> None:
        """Take note of a copy.

        Args:
            key: what the file is called here, as long as it has a name; another one may be called so later.
            fd: the file, open for writing; the caller may close it.

        Blocking: waits for the device where no more can be kept.
        """
        if len(self._waiting) >= self._most:
            self.finish()
        try:
            if self._thread is None:
                self._thread = self._started(fd)
            own = os.dup(fd)
        except (OSError, RuntimeError):  # no descriptor, no thread
            self._await(key, fd)
            return
        if self._failed:
            self._failed.pop(key, None)
        with self._changing:
            waiting = self._waiting
            before = waiting.get(key, -1)
            waiting[key] = own
            count = len(waiting)
        if before >= 0:  # of another file that was called so: whom to tell what goes wrong with it nobody knows
            with contextlib.suppress(OSError):
                await_writeback(before)
            _close(before)
        if count == 1:
            self._some.set()
        elif 2 * count >= self._most:
            self._many.set()

    def drop(self, key: Hashable) -> None:
        """Let go of a copy that has lost its name: nobody will look for its bytes, and others want their space."""
        self._failed.pop(key, None)
        if self._waiting:
            with self._changing:
                fd = self._waiting.pop(key, -1)
            if fd >= 0:
                _close(fd)

    def finish(self) -> None:
        """Wait until the bytes of all copies are on the disk; names are not looked at.

        What cannot be written is told by :meth:`raise_failure`.

        Blocking: waits for the device, if there are any.
        """
        if self._waiting or self._writing.locked():
            self._write()

    def raise_failure(self, key: Hashable) -> None:
        """Tell once that a copy could not be written: the kernel told it to this class, and tells nobody again.

        Raises:
            OSError: EIO, ENOSPC.
        """
        if self._failed and (number := self._failed.pop(key, None)) is not None:
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Send off what waits, and end the thread.

        Blocking: about a second at most, whatever the device does.
        """
        end = time.monotonic() + _LAST
        self._closed = True
        self._some.set()
        self._many.set()
        for key, fd in self._taken().items():
            if time.monotonic() < end:
                try:
                    start_writeback(fd)
                except OSError as error:
                    self._fail(key, error)
            _close(fd)
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()))

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
            self._write()

    def _taken(self) -> dict[Hashable, int]:
        """Take all copies that wait; from now on the next one is the first again."""
        with self._changing:
            taken, self._waiting = self._waiting, {}
        return taken

    def _write(self) -> None:
        """Write all copies that wait, after those that somebody else has taken."""
        with self._writing:
            taken = self._taken()
            for key, fd in taken.items():  # all are on their way before the first one is waited for
                try:
                    start_writeback(fd)
                except OSError as error:
                    self._fail(key, error)
            for key, fd in taken.items():
                self._await(key, fd)
                _close(fd)

    def _await(self, key: Hashable, fd: int) -> None:
        """Wait for one copy, and keep what went wrong."""
        try:
            await_writeback(fd)
        except OSError as error:
            self._fail(key, error)

    def _fail(self, key: Hashable, error: OSError) -> None:
        """Keep what went wrong for whoever asks about this copy, which perhaps nobody does."""
        self._failed[key] = error.errno or errno.EIO
        _log.error("the copy of a file in the upper directory could not be written to the disk: %s", error.strerror)


def _close(fd: int) -> None:
    """Close a descriptor; what network file systems answer to that is told by an fsync too."""
    with contextlib.suppress(OSError):
        os.close(fd)
