"""Copying an inode of the lower tree up: complete first, then in its place by one call.

A regular file is copied without a name where the file system can, and gets it at the end; all else is made in the work
directory and renamed. Mode, owner, times, xattrs and content are kept, holes too but for those of small files. Bytes go
from file to file inside the kernel, as a reflink where the file systems can, so memory does not depend on size. A crash
leaves the file where it was, or copied; what is half done has no name, or lies in the work directory, which the next
mount clears.
"""

from __future__ import annotations

import errno
import os
import stat

from layerfs.formats.xattr import ACL_NAMES
from layerfs.linux.sparse import copy_data
from layerfs.union.attribute import Attributes
from layerfs.union.lower import LowerFile, LowerTree, Reference
from layerfs.union.mark import SET_ID, descriptor_path, open_inode, set_limited_acl
from layerfs.union.upper import Upper

__all__ = ["copy_inode"]

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMELESS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
#: Files up to this size are copied by one read and one write; looking for holes costs more calls than it saves.
_SMALL = 64 << 10
_PERMISSIONS = 0o7777 & ~SET_ID
#: What a file system answers for xattrs that it does not keep; overlayfs goes on without them too.
_UNKEPT = frozenset({errno.EOPNOTSUPP, errno.EPERM})


def copy_inode(lower: LowerTree, reference: Reference, upper: Upper, *, data: bool = True) -> tuple[bytes, int, int]:
    """Copy an inode, in a process without a umask.

    Args:
        lower: the tree.
        reference: what to copy; of a directory the directory alone.
        upper: where to.
        data: False leaves a regular file empty, for a caller that truncates it.

    Returns:
        The name in the work directory, for :meth:`layerfs.union.upper.Upper.place_copy`; empty for a file that has none
        yet. A descriptor: for reading and writing of a regular file, an O_PATH one of a directory, or -1. And how many
        names the inode has in the lower tree.

    Raises:
        OSError: ENOSPC, EDQUOT, EIO; nothing is left then.
    """
    attributes = lower.attributes(reference)
    if not stat.S_ISREG(attributes.mode):
        return _copy_other(lower, reference, attributes, upper)
    # What nobody else can reach is made with its mode: that saves a chmod. Set-ID bits would not outlive what follows.
    first = 0o600 if upper.override else attributes.mode & _PERMISSIONS
    work = upper.work
    name = b""
    if upper.nameless:
        fd = os.open(b".", _NAMELESS | upper.quiet, first, dir_fd=work)
    else:
        name = upper.temporary()
        fd = os.open(name, _NEW | upper.quiet, first, dir_fd=work)
    try:
        if data and attributes.size:
            _copy_content(lower.open(reference), fd)
        _dress(fd, fd, attributes, lower.xattrs(reference), upper)
    except BaseException:
        os.close(fd)
        if name:
            os.unlink(name, dir_fd=work)
        raise
    return name, fd, attributes.nlink


def _copy_other(lower: LowerTree, reference: Reference, attributes: Attributes, upper: Upper) -> tuple[bytes, int, int]:
    """Copy what is no regular file, as :func:`copy_inode` does."""
    kind, mode = stat.S_IFMT(attributes.mode), attributes.mode & _PERMISSIONS
    name, work = upper.temporary(), upper.work
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700 if upper.override else mode, dir_fd=work)
    elif kind == stat.S_IFLNK:
        os.symlink(lower.readlink(reference), name, dir_fd=work)
    else:
        os.mknod(name, kind | mode, attributes.rdev, dir_fd=work)
    fd = -1
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=work) if kind == stat.S_IFDIR else open_inode(name, work)
        _dress(fd, descriptor_path(fd), attributes, lower.xattrs(reference), upper, name)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        upper.drop_copy(name)
        raise
    if kind != stat.S_IFDIR:
        os.close(fd)
        fd = -1
    return name, fd, attributes.nlink


def _copy_content(source: LowerFile, fd: int) -> None:
    """Copy a file's bytes; holes stay such where looking for them costs less than writing them."""
    try:
        size = source.size
        if size <= _SMALL:
            if size:
                content = os.pread(source.fd, size, source.offset)
                if len(content) != size:
                    raise OSError(errno.EIO, "lower file ends too early")
                written = os.pwrite(fd, content, 0)
                while written < size:
                    written += os.pwrite(fd, memoryview(content)[written:], written)
            return
        copy_data(source.fd, source.offset, fd, 0, size)
        os.ftruncate(fd, size)
    finally:
        if source.owned:
            os.close(source.fd)


def _dress(
    fd: int, path: bytes | int, attributes: Attributes, xattrs: dict[bytes, bytes], upper: Upper,
    name: bytes | None = None,
) -> None:  # fmt: skip
    """Give a copy owner, xattrs, mode and times, in the order in which none takes another one away.

    ``path`` is a descriptor where that is enough, which saves the way through /proc; ``name`` is there where it is not.
    """
    mode = attributes.mode
    if not upper.override:
        if (attributes.uid, attributes.gid) != upper.owner:
            if name is None:
                os.fchown(fd, attributes.uid, attributes.gid)
            else:
                os.chown(name, attributes.uid, attributes.gid, dir_fd=upper.work, follow_symlinks=False)
        if mode & SET_ID and not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode))
    for key, value in xattrs.items():
        try:
            os.setxattr(path, key, value)
        except OSError as error:
            if error.errno == errno.EINVAL and key in ACL_NAMES:
                set_limited_acl(path, key, value)
            elif error.errno not in _UNKEPT:
                raise
    if upper.override and stat.S_IFMT(mode) in {stat.S_IFREG, stat.S_IFDIR}:
        # Behind an ACL, which sets the mode too.
        upper.keep_owner(path, mode, attributes.uid, attributes.gid)
    times = (attributes.atime_ns, attributes.mtime_ns)
    if name is None:
        os.utime(fd, ns=times)
    else:
        os.utime(name, ns=times, dir_fd=upper.work, follow_symlinks=False)
