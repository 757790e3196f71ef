"""What stat says of an inode of the union."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from layerfs.formats.whiteout import parse_override

__all__ = ["Attributes", "from_status", "overridden"]

# Past the constructor, which is written in Python: 0.2 µs of what every request for attributes takes.
_new = tuple.__new__


class Attributes(NamedTuple):
    """The fields of ``stat``; times in nanoseconds since the epoch, ``blocks`` of 512 bytes, ``mode`` with its type."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


def from_status(ino: int, status: os.stat_result, nlink: int | None = None) -> Attributes:
    """Return the attributes that the kernel gave, under another inode number, perhaps with another number of links."""
    return _new(Attributes, (
        ino, status.st_mode, status.st_nlink if nlink is None else nlink, status.st_uid, status.st_gid, status.st_rdev,
        status.st_size, status.st_blocks, status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns,
    ))  # fmt: skip


def overridden(found: Attributes, value: bytes | None) -> Attributes:
    """Return attributes with the owner and the mode that an xattr says, if it says any."""
    wanted = None if value is None else parse_override(value)
    if wanted is None:
        return found
    uid, gid, bits = wanted
    return found._replace(uid=uid, gid=gid, mode=stat.S_IFMT(found.mode) | bits)
