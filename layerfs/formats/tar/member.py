"""One member of a tar archive, and the names that may stand in one."""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.errors import FormatError, LimitExceeded, UnsafePath, quoted
from layerfs.formats.whiteout import WHITEOUT_PREFIX

__all__ = ["MAX_ID", "MAX_NAME", "MAX_PATH", "Member", "SparseMap", "split_path"]

#: The longest name of one path component: NAME_MAX of Linux (include/uapi/linux/limits.h).
MAX_NAME = 255

#: The longest name of a whiteout: what it hides has to fit, not what it is called in an archive.
_MAX_WHITEOUT = len(WHITEOUT_PREFIX) + MAX_NAME

#: The longest whole path. Beyond PATH_MAX (4096), because a tree may be deeper than one system call can name, but
#: bounded, because each component costs memory.
MAX_PATH = 64 * 1024

#: The largest user or group ID: 2^32-1 is (uid_t)-1, "no change" to chown, and never a real owner.
MAX_ID = 2**32 - 2

#: (offset in the file, length) of each piece of data, ascending.
SparseMap = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Member:
    """What one tar header (with its PAX and GNU extensions) says.

    Attributes:
        name: the path as written, prefix joined, not yet checked or split.
        kind: the type flag: ``0`` file, ``1`` hard link, ``2`` symlink, ``3`` character device, ``4`` block device,
            ``5`` directory, ``6`` fifo. All kinds of regular file (NUL, 7, S) appear as ``0``.
        mode: permission bits (12 bits), no type.
        uid: owner, 0..2^32-2.
        gid: group, 0..2^32-2.
        mtime: seconds since the epoch, may be negative.
        mtime_ns: nanoseconds 0..999,999,999 on top of ``mtime``.
        size: bytes of the file when read, holes of a sparse member included.
        link: target of a link, as written.
        major: device number.
        minor: device number.
        xattrs: extended attributes by full name, or None.
        header_offset: where the first block of this member (its extensions included) begins.
        data_offset: where its stored data begins.
        data_size: bytes of stored data; less than ``size`` for sparse members.
        sparse: where the stored pieces belong in the file, or None for plain files.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes] | None
    header_offset: int
    data_offset: int
    data_size: int
    sparse: SparseMap | None


def split_path(path: bytes, *, what: str = "path") -> list[bytes]:
    """Return the components of an archive path, taken from the root of the tree.

    A leading ``/`` and ``.`` components fall away, as every extractor has it; the empty list is the root itself.

    Raises:
        UnsafePath: a ``..`` component or a NUL byte.
        LimitExceeded: a component longer than 255 bytes, without the prefix of a whiteout, or a path longer than
            :data:`MAX_PATH`.
        FormatError: an empty path.
    """
    if not path:
        raise FormatError(f"empty {what}")
    if len(path) > MAX_PATH:
        raise LimitExceeded(f"{what} of {len(path)} bytes is longer than {MAX_PATH}: {quoted(path, 80)}")
    if b"\0" in path:
        raise UnsafePath(f"{what} {quoted(path)} contains a NUL byte")
    parts = [part for part in path.split(b"/") if part and part != b"."]
    for part in parts:
        if part == b"..":
            raise UnsafePath(f"{what} {quoted(path)} contains '..'")
        if len(part) > MAX_NAME and not (part.startswith(WHITEOUT_PREFIX) and len(part) <= _MAX_WHITEOUT):
            raise LimitExceeded(f"{what} {quoted(path, 80)} has a name longer than {MAX_NAME} bytes")
    return parts
