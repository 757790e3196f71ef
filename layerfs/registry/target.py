"""Where an archive goes: a file that appears when it is complete, or a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from layerfs.errors import LayerfsError
from layerfs.linux.staging import StagedFile

__all__ = ["Target", "open_target"]

StrPath = str | os.PathLike[str]


class Target:
    """Takes the bytes of an archive in order; a header may be written late where the target is a file of ours."""

    def __init__(self, file: BinaryIO, *, patchable: bool) -> None:
        """Wrap a binary stream; ``patchable`` says that :meth:`patch` works."""
        self._file = file
        self.patchable = patchable
        self.position = 0

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            OSError: ENOSPC, EPIPE, EIO.
        """
        done = self._file.write(data)
        while done < len(data):
            done += self._file.write(memoryview(data)[done:])
        self.position += len(data)

    def patch(self, position: int, data: bytes) -> None:
        """Write over what is already there."""
        os.pwrite(self._file.fileno(), data, position)

    def flush(self) -> None:
        """Hand on what is still in a buffer."""
        self._file.flush()


@contextmanager
def open_target(target: StrPath | BinaryIO, *, sync: bool = True) -> Iterator[Target]:
    """Open a target for one archive.

    Args:
        target: a path; or a stream, which the caller closes.
        sync: whether a file is durable when this ends.

    Raises:
        LayerfsError: the path cannot be written.
        OSError: what a stream raises.

    Atomicity: a regular file appears under its name when the block has ended without an exception, replacing what was
        there. What is there and no regular file, such as a fifo or /dev/stdout, is written to as it is.
    """
    if not isinstance(target, str | os.PathLike):
        wrapped = Target(target, patchable=False)
        yield wrapped
        wrapped.flush()
        return
    path = os.fspath(target)
    try:
        mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
        if not stat.S_ISREG(mode):
            with open(path, "wb", buffering=0) as special:
                yield Target(cast("BinaryIO", special), patchable=False)
            return
        directory, name = os.path.split(os.path.realpath(path))
        staged = StagedFile(directory, name)
    except OSError as error:
        raise LayerfsError(f"cannot write {path}: {error.strerror}") from error
    try:
        with staged:
            yield Target(cast("BinaryIO", staged.file), patchable=True)
            staged.publish(name, sync=sync)
    except OSError as error:
        raise LayerfsError(f"cannot write {path}: {error.strerror}") from error
