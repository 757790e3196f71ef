"""Advisory locks between processes and threads, on lock files that may be deleted by their holder.

A :class:`FileLock` is a flock(2) on a descriptor of its own, so two locks on one path exclude each other inside one
process as well, and a process that dies releases what it held. The file itself never holds data.

Invariant: whoever holds the lock holds it on the file that the path names at that moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["FileLock"]

#: First and longest pause between two tries while ``check`` is polled; seconds. 50 ms is not felt by a user who waits.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


class FileLock:
    """A shared or exclusive lock on a path; a context manager that holds it inside the block.

    Not re-entrant: a second ``acquire`` of a held lock is an error of the caller. An instance belongs to one thread at
    a time; different instances are independent.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shared: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Name the lock without taking it.

        Args:
            path: the lock file; made with mode 0600 if it is absent. Its directory exists.
            shared: True admits other shared holders, False none.
            check: polled while waiting; what it raises ends the waiting. None waits inside the kernel.
        """
        self.path = os.fspath(path)
        self.shared = shared
        self._check = check
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether this instance holds the lock."""
        return self._fd >= 0

    def acquire(self) -> None:
        """Wait until the lock is held.

        Raises:
            OSError: EACCES, ENOENT (no such directory), EROFS, ENOLCK (a file system without locks), EDEADLK when this
                instance already holds it.

        Blocking: without limit; polls ``check`` if there is one.
        """
        if self._check is None:
            while not self._lock(0):
                pass
            return
        pause = _FIRST_PAUSE
        while not self.try_acquire():
            self._check()
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def try_acquire(self) -> bool:
        """Take the lock if that is possible at once.

        Returns:
            Whether it is held now.

        Raises:
            OSError: as :meth:`acquire`.
        """
        try:
            while not self._lock(fcntl.LOCK_NB):
                pass
        except BlockingIOError:
            return False
        return True

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; nothing happens if it is not held.

        Args:
            remove: also delete the lock file, for locks on things that come and go. Only an exclusive holder may.

        Raises:
            ValueError: if a shared holder asks to remove the file.
        """
        if self._fd < 0:
            return
        if remove:
            if self.shared:
                raise ValueError("a shared lock file cannot be removed by one of its holders")
            # Before the unlock, so that nobody can take the lock on the file that is going away unnoticed: who
            # waits on it compares inodes when it gets it.
            # A file that stays is no harm.
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        fd, self._fd = self._fd, -1
        os.close(fd)

    def __enter__(self) -> Self:
        """Wait for the lock."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        self.release()

    def _lock(self, flags: int) -> bool:
        """Open and lock the file; False means that it was deleted meanwhile and the caller tries again."""
        if self._fd >= 0:
            raise OSError(errno.EDEADLK, "lock is already held by this instance", self.path)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, flags | (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX))
            try:
                current = os.stat(self.path, follow_symlinks=False)
            except FileNotFoundError:
                current = None
            if current is not None and os.path.samestat(current, os.fstat(fd)):
                self._fd, fd = fd, -1
                return True
            return False
        finally:
            if fd >= 0:
                os.close(fd)
