"""What goes over /dev/fuse: the messages of the kernel's FUSE protocol, 7.31 and later, in this machine's byte order.

Source: include/uapi/linux/fuse.h. A request is an ``IN_HEADER`` and what its operation adds; a reply is an
``OUT_HEADER`` with a negative errno or 0, and what the operation answers.
"""

from __future__ import annotations

import functools
import struct
from enum import IntEnum, IntFlag

__all__ = [
    "ATTRIBUTES",
    "ENTRY",
    "INIT_IN",
    "INIT_OUT",
    "IN_HEADER",
    "MINOR",
    "NOTIFY_INODE",
    "OUT_HEADER",
    "STATFS",
    "Init",
    "Notify",
    "Operation",
    "SetAttr",
    "directory_entry",
]

#: The version that replies are written in; the kernel speaks the lower one of both.
MINOR = 36

#: len, opcode, unique, nodeid, uid, gid, pid, length of extensions, padding.
IN_HEADER = struct.Struct("=IIQQIIIHH")
#: len, error, unique.
OUT_HEADER = struct.Struct("=IiQ")
#: major, minor, max_readahead, flags.
INIT_IN = struct.Struct("=IIII")
#: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
#: map_alignment, flags2, unused.
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES = "QQQqqqIIIIIIIIII"
#: An OUT_HEADER; attr_valid, attr_valid_nsec, padding; ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec,
#: ctimensec, mode, nlink, uid, gid, rdev, blksize, flags.
ATTRIBUTES = struct.Struct("=IiQQI4x" + _ATTRIBUTES)
#: An OUT_HEADER; nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; attributes.
ENTRY = struct.Struct("=IiQQQQQII" + _ATTRIBUTES)
#: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, spare.
STATFS = struct.Struct("=QQQQQIII28x")
#: An OUT_HEADER; ino, offset, length. An offset below 0 is about the attributes alone.
NOTIFY_INODE = struct.Struct("=IiQQqq")


@functools.cache
def directory_entry(length: int) -> struct.Struct:
    """Return what one name of a READDIRPLUS reply is, without the padding to eight bytes behind it.

    The entry and the attributes without a header; then ino, place of the next one, length of the name, type; the name.
    """
    return struct.Struct(f"=QQQQII{_ATTRIBUTES}QQII{length}s")


class Operation(IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51


class Notify(IntEnum):
    """``enum fuse_notify_code``, in the place of an error: what the server says by itself."""

    INVAL_INODE = 2


class Init(IntFlag):
    """Capabilities that both sides agree on."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    SETXATTR_EXT = 1 << 29


class SetAttr:
    """Which fields a SETATTR request changes. Plain numbers: one ``&`` of an IntFlag takes as long as a system call."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
