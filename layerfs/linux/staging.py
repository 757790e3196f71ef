"""Files that get their name when they are complete, and leave nothing when whoever writes them is killed.

The file under way has a name of its own beside the final one, and is locked. What such a name stands for and nobody has
locked is of a process that was killed: the next one removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from types import TracebackType
from typing import Self

from layerfs.linux.durable import publish, write_all

__all__ = ["NO_LOCKS", "StagedFile", "locked_file"]

#: What file systems answer that know no such lock.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF})


class StagedFile:
    """A file under way; a context manager that throws it away unless it was published.

    Attributes:
        file: to write to, unbuffered.
    """

    def __init__(self, directory: str, stem: str, *, mode: int = 0o666) -> None:
        """Make it, and remove what killed processes have left of the same directory and stem.

        Args:
            directory: of the final name.
            stem: a part of the name until then, at most 200 bytes.
            mode: permission bits, reduced by the umask.

        Raises:
            OSError: ENOENT, ENOSPC, EACCES, EROFS.
        """
        self._directory = directory
        stem = os.fsdecode(os.fsencode(stem)[:200])
        _sweep(directory, stem)
        while True:
            self._path = os.path.join(directory, f".{stem}.{os.urandom(6).hex()}")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.file = FileIO(os.open(self._path, flags, mode), "r+")
            if _lock(self.file.fileno()) and os.path.exists(self._path):
                return
            self.file.close()  # another process took it for one that was left

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Throw it away, if it has no name yet."""
        with self.file:
            if self._path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)

    def write(self, data: bytes) -> None:
        """Write all of it at the end.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO.
        """
        write_all(self.file.fileno(), data)

    def publish(self, name: str, *, replace: bool = True, sync: bool = True) -> None:
        """Give it its name.

        Args:
            name: in the directory.
            replace: whether what is there is replaced; else it is an error.
            sync: whether file and name are durable then.

        Raises:
            OSError: EIO, ENOSPC, EISDIR, EEXIST.

        Blocking: waits for the device: two fsyncs.
        """
        publish(self._path, os.path.join(self._directory, name), replace=replace, sync=sync)
        self._path = ""


@contextmanager
def locked_file(path: str) -> Iterator[None]:
    """Keep others who do the same out of the block, by a lock of a file that is there and stays.

    Raises:
        OSError: ENOENT, EACCES.

    Blocking: until nobody else is in it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(fd)


def _sweep(directory: str, stem: str) -> None:
    """Remove what processes have left that were killed."""
    pattern = re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{12}}")
    try:
        names = os.listdir(directory)
    except OSError:
        return  # one that may be written to and not read
    for name in filter(pattern.fullmatch, names):
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(fd)


def _lock(fd: int) -> bool:
    """Lock a file that was just made; return whether nobody else has."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
