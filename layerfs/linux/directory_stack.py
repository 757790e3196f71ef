"""Walking up and down a directory tree by descriptors, however deep it is.

A process has about a thousand descriptors, and trees from outside can be deeper. So only the innermost directories stay
open; an outer one is opened again through ``..`` when the walk comes back to it, and compared with what it was.

Invariant: the walk never follows a symbolic link, and never continues in another directory than the one it left.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

__all__ = ["DirectoryStack", "walk_status"]

#: Directories of one walk that stay open. Two walks at once stay far below the usual limit of 1024 descriptors.
_OPEN = 128

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryStack:
    """The directories from a start down to the current one; a context manager that closes them.

    Not thread-safe.
    """

    def __init__(self, start: int) -> None:
        """Begin at a directory.

        Args:
            start: a descriptor of it; stays the caller's.

        Raises:
            OSError: ENOTDIR if it is none, EACCES.
        """
        self._fds: list[int] = [os.open(b".", _DIRECTORY, dir_fd=start)]
        self._identities: list[tuple[int, int]] = [_identity(self._fds[0])]

    @property
    def fd(self) -> int:
        """A descriptor of the current directory, open for reading; valid until the next step."""
        return self._fds[-1]

    @property
    def depth(self) -> int:
        """How many steps below the start the current directory is."""
        return len(self._fds) - 1

    def push(self, name: bytes) -> int:
        """Go down into a directory.

        Args:
            name: of an entry of the current directory.

        Returns:
            :attr:`fd` of the new current directory.

        Raises:
            OSError: ENOENT, ENOTDIR or ELOOP (a symbolic link), EACCES; the walk then stays where it is.
        """
        fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        self._fds.append(fd)
        self._identities.append(_identity(fd))
        outermost = len(self._fds) - 1 - _OPEN
        if outermost >= 0 and self._fds[outermost] >= 0:
            os.close(self._fds[outermost])
            self._fds[outermost] = -1
        return fd

    def pop(self) -> int:
        """Go back up to the directory that the last :meth:`push` left.

        Returns:
            :attr:`fd` of it.

        Raises:
            OSError: ESTALE if the current directory was moved elsewhere meanwhile, so that the way back is lost.
        """
        if self._fds[-2] < 0:
            fd = os.open(b"..", _DIRECTORY, dir_fd=self.fd)
            if _identity(fd) != self._identities[-2]:
                os.close(fd)
                raise OSError(errno.ESTALE, "a directory was moved while the tree was walked")
            self._fds[-2] = fd
        os.close(self._fds.pop())
        self._identities.pop()
        return self.fd

    def close(self) -> None:
        """Close all descriptors."""
        while self._fds:
            fd = self._fds.pop()
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        """Return the stack itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all descriptors."""
        self.close()


def walk_status(start: int, *, blind: bool = False) -> Iterator[os.stat_result]:
    """Yield the status of everything below a directory, not of itself; symbolic links are not followed.

    A directory comes before what is in it. What somebody removes meanwhile is left out.

    Args:
        start: a descriptor of the directory; stays the caller's.
        blind: leave out, too, what this process may not look into.

    Raises:
        OSError: EACCES (of the start even if ``blind``), ESTALE as :meth:`DirectoryStack.pop`.
    """
    skipped: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError)
    if blind:
        skipped += (PermissionError,)
    with DirectoryStack(start) as stack:
        todo = [(yield from _statuses(stack.fd, skipped))]
        while todo:
            if todo[-1]:
                try:
                    stack.push(todo[-1].pop())
                except skipped:
                    continue
                todo.append((yield from _statuses(stack.fd, skipped)))
            else:
                todo.pop()
                if todo:
                    stack.pop()


def _statuses(fd: int, skipped: tuple[type[OSError], ...]) -> Generator[os.stat_result, None, list[bytes]]:
    """Yield the status of all entries of a directory; return the names of its directories."""
    directories = []
    try:
        names = os.listdir(fd)
    except skipped:
        return []  # it was removed after it was opened
    for name in names:
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except skipped:
            continue
        if stat.S_ISDIR(status.st_mode):
            directories.append(os.fsencode(name))
        yield status
    return directories


def _identity(fd: int) -> tuple[int, int]:
    """Return what tells a directory from all others."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
