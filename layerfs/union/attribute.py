"""What stat says of an inode of the union."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["Attributes", "from_status"]


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


def from_status(ino: int, status: os.stat_result) -> Attributes:
    """Return the attributes that the kernel gave, under another inode number."""
    return Attributes(
        ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, status.st_size,
        status.st_blocks, status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip
