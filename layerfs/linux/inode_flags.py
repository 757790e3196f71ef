"""Inode flags, which lsattr shows and chattr sets: append-only, immutable, no copy-on-write and so on.

Source: Linux include/uapi/linux/fs.h; fs/file_attr.c asks file systems for them by the ioctls that programs use.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import NamedTuple

__all__ = ["EXTENDED", "FLAGS", "FlagForm", "is_append_only", "read_flags", "unprotect", "with_flags", "write_flags"]

#: Nothing can be removed from a directory with one of them, nor a file itself.
_APPEND, _IMMUTABLE = 0x20, 0x10


def _request(kind: str, number: int, size: int, *, reads: bool) -> int:
    """Return the number of an ioctl that reads or writes (asm-generic/ioctl.h; POWER and others have their own)."""
    if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")):
        direction = (2 if reads else 4) << 29
    else:
        direction = (2 if reads else 1) << 30
    return direction | size << 16 | ord(kind) << 8 | number


class FlagForm(NamedTuple):
    """One of the two forms in which flags are read and written.

    Attributes:
        get: the ioctl that reads them.
        set: the one that writes them.
        size: bytes that these move.
    """

    get: int
    set: int
    size: int


#: ``FS_*_FL``: named after a long, but an int.
FLAGS = FlagForm(_request("f", 1, 8, reads=True), _request("f", 2, 8, reads=False), 4)
#: ``struct fsxattr``: ``FS_XFLAG_*``, extent size hints, project number.
EXTENDED = FlagForm(_request("X", 31, 28, reads=True), _request("X", 32, 28, reads=False), 28)


def read_flags(fd: int, form: FlagForm) -> bytes:
    """Return the flags of an open inode as the kernel writes them down.

    Raises:
        OSError: ENOTTY, EOPNOTSUPP where the file system has none.
    """
    value = bytearray(form.size)
    fcntl.ioctl(fd, form.get, value)
    return bytes(value)


def write_flags(fd: int, form: FlagForm, value: bytes) -> None:
    """Set all flags of an open inode, in one step.

    Args:
        fd: open for reading.
        form: how they are written down.
        value: what :func:`read_flags` returned, changed.

    Raises:
        OSError: EPERM without the capability for append-only and immutable, EOPNOTSUPP for flags that the file system
            does not have, ENOTTY, EROFS.
    """
    fcntl.ioctl(fd, form.set, value)


def is_append_only(fd: int) -> bool:
    """Return whether an open file can only grow, or nothing be removed from an open directory.

    Raises:
        OSError: ENOTTY, EOPNOTSUPP where the file system has no flags.
    """
    return bool(int.from_bytes(read_flags(fd, FLAGS), sys.byteorder) & _APPEND)


def with_flags(value: bytes, other: bytes) -> bytes:
    """Return what :func:`read_flags` said, with the flags of another answer of the same form added."""
    flags = int.from_bytes(value[:4], sys.byteorder) | int.from_bytes(other[:4], sys.byteorder)
    return flags.to_bytes(4, sys.byteorder) + value[4:]  # in both forms they are the first word


def unprotect(fd: int) -> None:
    """Take append-only and immutable from an open inode, so that it and what is in it can be removed.

    Raises:
        OSError: EPERM without the capability.
    """
    try:
        flags = int.from_bytes(read_flags(fd, FLAGS), sys.byteorder)
    except OSError:
        return  # a file system without any
    if flags & (_APPEND | _IMMUTABLE):
        write_flags(fd, FLAGS, (flags & ~(_APPEND | _IMMUTABLE)).to_bytes(4, sys.byteorder))
