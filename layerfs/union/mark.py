"""How overlayfs marks whiteouts and opaque directories on disk, read and written through descriptors.

The marks are xattrs ``trusted.overlay.*``, or ``user.overlay.*`` where a process has no trusted ones. Files are named
by ``/proc/self/fd/N`` of an O_PATH descriptor: that reaches exactly the inode that was opened, a symbolic link's own
xattrs included, and can never follow a link.

Source: Linux Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; fs/overlayfs/util.c.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from errno import ENODATA, ENOTSUP, EPERM

from layerfs.formats.whiteout import OVERRIDE_XATTR
from layerfs.formats.xattr import limited_acl
from layerfs.linux.process import is_group_here, is_user_here

__all__ = [
    "AUFS_OPAQUE",
    "AUFS_WHITEOUT",
    "ESCAPE",
    "FUSE_OVERLAYFS_OPAQUE",
    "OVERRIDE_XATTR",
    "SET_ID",
    "descriptor_path",
    "get_xattr",
    "is_whiteout",
    "list_xattrs",
    "open_below",
    "open_inode",
    "open_quietly",
    "read_opaque",
    "read_xattrs",
    "refuse_metacopy",
    "set_limited_acl",
]

#: Mode bits that give who runs a file the rights of its owner or group.
SET_ID = stat.S_ISUID | stat.S_ISGID
#: Behind the prefix of what is a mark of an overlay inside this one.
ESCAPE = b"overlay."
#: How containers/storage lays layers down when it mounts through a program, and what fuse-overlayfs writes where it may
#: make no device: an empty file hides the name behind its prefix, or all of its directory.
AUFS_WHITEOUT = b".wh."
AUFS_OPAQUE = b".wh..wh..opq"
FUSE_OVERLAYFS_OPAQUE = b"user.fuseoverlayfs.opaque"

_NONE = frozenset({ENODATA, ENOTSUP, EPERM})
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def descriptor_path(fd: int) -> bytes:
    """Return the path by which calls without an at-form reach an open inode."""
    return b"/proc/self/fd/%d" % fd


def open_inode(name: bytes, dir_fd: int) -> int:
    """Open whatever a name means, links themselves, for :func:`descriptor_path`."""
    return os.open(name, _INODE, dir_fd=dir_fd)


def open_quietly(name: bytes, flags: int, *, dir_fd: int | None) -> int:
    """Open something, and leave its atime alone where its owner may ask for that."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, flags, dir_fd=dir_fd)


def open_below(start: int, names: Iterable[bytes]) -> int:
    """Open a directory some levels below another one, which stays open, and follow no link on the way."""
    fd = start
    try:
        for name in names:
            following = os.open(name, _DIRECTORY, dir_fd=fd)
            if fd != start:
                os.close(fd)
            fd = following
    except BaseException:
        if fd != start:
            os.close(fd)
        raise
    return fd


def is_whiteout(status: os.stat_result) -> bool:
    """Whether these are the attributes of overlayfs's usual whiteout, a character device 0/0."""
    return status.st_rdev == 0 and stat.S_ISCHR(status.st_mode)


def get_xattr(fd: int, name: bytes) -> bytes | None:
    """Return an xattr of an open inode, or None."""
    try:
        return os.getxattr(descriptor_path(fd), name)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise


def list_xattrs(where: bytes | int) -> list[bytes]:
    """Return the names of the xattrs of an inode: a path, or a descriptor that is more than an O_PATH one."""
    try:
        names = os.listxattr(where)
    except OSError as error:
        if error.errno in _NONE:  # a file system that knows no xattrs
            return []
        raise
    return [os.fsencode(name) for name in names] if names else []


def read_xattrs(fd: int) -> dict[bytes, bytes]:
    """Return all xattrs of an open inode."""
    found = {}
    for name in list_xattrs(descriptor_path(fd)):
        value = get_xattr(fd, name)
        if value is not None:
            found[name] = value
    return found


def set_limited_acl(where: bytes | int, name: bytes, value: bytes) -> None:
    """Set an ACL without those whom this user namespace does not have, whom no process in it can name.

    Raises:
        OSError: EINVAL if that is not what was wrong with it.
    """
    os.setxattr(where, name, limited_acl(value, is_user_here, is_group_here))


def read_opaque(fd: int, prefix: bytes, *, foreign: bool = True) -> bytes:
    """Return the opaque mark of an open directory: ``y`` hides all below, ``x`` admits whiteouts as xattrs.

    Args:
        fd: the directory.
        prefix: of the xattrs that are marks.
        foreign: whether fuse-overlayfs's mark counts too, which anybody may set where the kernel has mounted.

    Raises:
        OSError: EPERM for a directory that is a redirect to another one: following it is switched off, as in the
            kernel with ``redirect_dir=nofollow``.
    """
    names = list_xattrs(descriptor_path(fd))
    if not names:
        return b""
    if prefix + b"redirect" in names:
        raise OSError(EPERM, "directory is a redirect")
    for mark in (prefix + b"opaque", *((FUSE_OVERLAYFS_OPAQUE,) if foreign else ())):
        if mark in names:
            return get_xattr(fd, mark) or b""
    return b""


def refuse_metacopy(fd: int, prefix: bytes) -> None:
    """Refuse the bytes of a metadata-only copy, which has its size and holes for them.

    Args:
        fd: the file, open for reading.
        prefix: of the xattrs that are marks.

    Raises:
        OSError: EPERM, as in the kernel with ``metacopy=off``.
    """
    # Its blocks do not tell: the xattrs may take one.
    try:
        os.getxattr(fd, prefix + b"metacopy")
    except OSError as error:
        if error.errno in _NONE:
            return
        raise
    raise OSError(EPERM, "file is a metadata-only copy")
