"""Unpacking a tree into a directory in overlayfs form, for kernels that cannot mount it.

A layer becomes one directory: whiteouts are 0/0 devices and opaque directories carry ``trusted.overlay.opaque``, as
they do in the layer's tree. :func:`layerfs.mount.overlay.mount_directories` stacks them.

Not every layer can be stacked. A tar may hold ``a/b/c`` without ``a`` and ``a/b``: such implicit directories take their
attributes from the layers below, and where one of these has a symbolic link called ``a``, their content goes where it
leads. A hard link may lead to a file of a layer below. overlayfs can express none of this, and what the right directory
would be depends on the image, not on the layer. Nor does it leave out a whiteout in a directory that no layer below
has. So :func:`is_stackable` tells such images from others, and the caller unpacks the merged tree of the image instead,
which is exact, into one directory. Builders write parents, so this is rare.

The root directory is the exception: many tars have none, and its attributes matter only at the top of the stack. There
they are set by :func:`apply_attributes` from the merged tree: on the upper directory of a container when it is made, or
through ``prepare_root`` of a read-only mount.

Everything is made relative to held descriptors inside a staging directory that only the caller can enter, under names
that must be new; nothing follows a symbolic link. Recursion, depth and path length are not limited.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from layerfs.errors import MountError, UnsafePath
from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Inode, Tree
from layerfs.formats.whiteout import (
    IMPLICIT_XATTR,
    LINK_XATTR,
    OPAQUE_XATTR,
    format_override,
    is_private_xattr,
    is_whiteout_device,
)
from layerfs.linux.directory_stack import DirectoryStack
from layerfs.linux.disk_use import tree_disk
from layerfs.linux.durable import fsync_directory, publish, sync_filesystem
from layerfs.linux.safe_path import remove_tree
from layerfs.linux.sparse import copy_data

__all__ = ["apply_attributes", "is_stackable", "sweep_staging", "unpack"]

StrPath = str | os.PathLike[str]

_STAGING = ".unpack-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Files up to this size are copied by one read and one write; looking for holes costs more calls than it saves.
_SMALL = 128 << 10
#: Device files that stay open; an image can have 499.
_DEVICES = 64


#: The directories of a stack, by name.
_Directories = dict[bytes, "_Directories"]


def is_stackable(layers: Sequence[Tree]) -> bool:
    """Tell whether the layers of an image mean the same as directories of an overlay.

    They do not if one has an implicit directory other than the root, or a hard link to a file of a layer below. Nor if
    it has a whiteout in a directory that no layer below has: overlayfs lists what is in such a directory as it is, the
    whiteout too (fs/overlayfs/readdir.c, ovl_dir_is_real).

    Args:
        layers: their own trees, bottom first.

    Raises:
        FormatError: for a damaged tree.
    """
    merged: _Directories = {}
    return all(_stacks(tree, merged) for tree in layers)


def _stacks(tree: Tree, merged: _Directories) -> bool:
    """Put a layer on the directories of those below; return whether it means the same as a directory there."""
    todo = [(tree.root, merged, True)]
    while todo:
        nid, here, is_merged = todo.pop()
        for name, child, kind in tree.readdir(nid):
            xattrs = tree.xattrs(child)
            if IMPLICIT_XATTR in xattrs or LINK_XATTR in xattrs:
                return False
            if kind != DIRECTORY_TYPE:
                inode = tree.inode(child)
                if not is_merged and is_whiteout_device(inode.mode, inode.rdev):
                    return False
                here.pop(name, None)
                continue
            is_opaque = OPAQUE_XATTR in xattrs
            below = None if is_opaque else here.get(name)
            inner = here[name] = {} if below is None else below
            # In an opaque directory whiteouts hide nothing, and are not unpacked.
            todo.append((child, inner, is_opaque or below is not None))
    return True


def unpack(
    tree: Tree,
    open_device: Callable[[int], int],
    destination: StrPath,
    *,
    check: Callable[[], None] | None = None,
    sync: bool = True,
) -> None:
    """Unpack a tree into a new directory.

    Names, types, modes, owners, times to the nanosecond, link targets, hard links, device numbers, xattrs with file
    capabilities, content and its holes are kept.

    Args:
        tree: a stackable layer tree, or a merged tree.
        open_device: returns a new descriptor, open for reading, of a file of the device table; closed here.
        destination: the directory to make; its parent exists and is not writable for others. If it exists already,
            nothing is done: it was complete when it got its name.
        check: called once per entry and while large files are copied; what it raises stops the work.
        sync: write everything to disk before the directory gets its name.

    Raises:
        MountError: with the path inside the tree and the errno: ENOSPC, EDQUOT, EPERM, EOPNOTSUPP for an xattr.
        UnsafePath: for a name that is none.
        ValueError: for a layer that is not stackable.
        FormatError: for a damaged tree.

    Blocking: writes as much as the tree holds; with ``sync`` waits for the whole file system once.
    Atomicity: the destination appears complete or not at all; what a killed process leaves is removed by the next call.
    """
    final = os.path.abspath(destination)
    if os.path.isdir(final):
        return
    parent = os.path.dirname(final)
    sweep_staging(parent)
    staging, fd = _make_staging(parent)
    try:
        for name in ("tree", "links"):
            os.mkdir(name, 0o700, dir_fd=fd)
        with _Unpacking(tree, open_device, fd, check) as work:
            work.run()
        sync_filesystem(fd, sync=sync)
        try:
            publish(os.path.join(staging, "tree"), final, sync=False)
        except FileExistsError:
            # Somebody else was quicker with the same tree.
            return
        fsync_directory(parent, sync=sync)
    finally:
        try:
            remove_tree(staging)
        finally:
            os.close(fd)


def sweep_staging(parent: StrPath) -> int:
    """Remove what killed processes have left of unfinished work.

    Args:
        parent: directory of the destinations.

    Returns:
        The bytes of disk that it took.

    Raises:
        OSError: EACCES, EROFS, EIO.
    """
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_STAGING)]
    freed = 0
    for name in names:
        path = os.path.join(parent, name)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, _DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += tree_disk(path)
                remove_tree(path)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
    return freed


def _make_staging(parent: str) -> tuple[str, int]:
    """Make a directory and lock it until its descriptor is closed, so that nobody takes it for a leftover."""
    while True:
        path = os.path.join(parent, _STAGING + os.urandom(6).hex())
        os.mkdir(path, 0o700)
        # Somebody may sweep it before it is locked.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, _DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.path.samestat(os.lstat(path), os.fstat(fd)):
                    return path, fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def apply_attributes(fd: int, tree: Tree, nid: int, *, override: bytes | None = None) -> None:
    """Give a directory or file the owner, xattrs, mode and mtime of an inode.

    For the root of an upper directory, which is what the root of a mount looks like.

    Args:
        fd: of the directory or file, not opened with O_PATH.
        tree: the tree of the inode.
        nid: its number.
        override: the xattr that keeps owner and mode of who may not give files away; None gives it away.

    Raises:
        OSError: EPERM, EOPNOTSUPP, ENOSPC (too many xattrs).
    """
    inode = tree.inode(nid)
    # The owner first: changing it clears set-user-ID bits and file capabilities.
    mode = stat.S_IMODE(inode.mode)
    if override is None:
        try:
            os.fchown(fd, inode.uid, inode.gid)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            mode &= 0o1777  # one that this user namespace does not have: it stays with who mounts
    for name, value in _kept_xattrs(tree, nid):
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            # As in a copy-up: who may not give files away may not set all xattrs.
            if override is None or error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
    if override is None:
        os.fchmod(fd, mode)
    else:
        os.setxattr(fd, override, format_override(inode.uid, inode.gid, inode.mode))
    os.utime(fd, ns=_times(inode))


@dataclass(slots=True)
class _Frame:
    """A directory under way."""

    nid: int
    entries: Iterator[tuple[bytes, int, int]]
    path: bytes
    is_opaque: bool = False


class _Unpacking:
    """One run of :func:`unpack` inside its staging directory; a context manager that closes its descriptors."""

    def __init__(
        self, tree: Tree, open_device: Callable[[int], int], staging: int, check: Callable[[], None] | None
    ) -> None:
        self._tree = tree
        self._open_device = open_device
        self._check = check
        self._devices: OrderedDict[int, int] = OrderedDict()
        # A file with several names gets one more here, under its inode number: the others are made from it.
        self._links = os.open(b"links", _DIRECTORY, dir_fd=staging)
        self._linked: set[int] = set()
        top = os.open(b"tree", _DIRECTORY, dir_fd=staging)
        try:
            self._stack = DirectoryStack(top)
        finally:
            os.close(top)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        os.close(self._links)
        while self._devices:
            os.close(self._devices.popitem()[1])

    def run(self) -> None:
        """Make everything; a directory's attributes come after its content, which would change its mtime."""
        frames = [_Frame(self._tree.root, self._tree.readdir(self._tree.root), b"")]
        while frames:
            frame = frames[-1]
            entry = next(frame.entries, None)
            path = frame.path if entry is None else frame.path + b"/" + entry[0]
            try:
                if entry is None:
                    apply_attributes(self._stack.fd, self._tree, frame.nid)
                    frames.pop()
                    if frames:
                        self._stack.pop()
                    continue
                if self._check is not None:
                    self._check()
                name, nid, _ = entry
                if frame.is_opaque and self._is_whiteout(nid):
                    continue  # it hides nothing, and overlayfs would list it
                if self._make(name, nid, path):
                    self._stack.push(name)
                    is_opaque = OPAQUE_XATTR in self._tree.xattrs(nid)
                    frames.append(_Frame(nid, self._tree.readdir(nid), path, is_opaque))
            except OSError as err:
                text = err.strerror or str(err)
                hint = "mount the image itself (--lower erofs)" if err.errno == errno.EOPNOTSUPP else None
                raise MountError(
                    f"cannot unpack {os.fsdecode(path) or '/'}: {text}", errno=err.errno, backend="overlay", hint=hint
                ) from err

    def _is_whiteout(self, nid: int) -> bool:
        inode = self._tree.inode(nid)
        return is_whiteout_device(inode.mode, inode.rdev)

    def _make(self, name: bytes, nid: int, path: bytes) -> bool:
        """Make one entry of the current directory; True for a directory that is to be entered."""
        if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
            raise UnsafePath(f"{os.fsdecode(path)!r} is no name of a file")
        inode = self._tree.inode(nid)
        here = self._stack.fd
        if stat.S_ISDIR(inode.mode):
            if IMPLICIT_XATTR in self._tree.xattrs(nid):
                raise ValueError(f"directory {os.fsdecode(path)} has its attributes in a layer below")
            os.mkdir(name, 0o700, dir_fd=here)
            return True
        if nid in self._linked:
            os.link(b"%d" % nid, name, src_dir_fd=self._links, dst_dir_fd=here, follow_symlinks=False)
            return False
        if stat.S_ISREG(inode.mode):
            self._make_file(name, inode, path)
        else:
            self._make_special(name, inode)
        if inode.nlink > 1:
            os.link(name, b"%d" % nid, src_dir_fd=here, dst_dir_fd=self._links, follow_symlinks=False)
            self._linked.add(nid)
        return False

    def _make_file(self, name: bytes, inode: Inode, path: bytes) -> None:
        """Make a regular file."""
        if LINK_XATTR in self._tree.xattrs(inode.nid):
            raise ValueError(f"{os.fsdecode(path)} is a link to a file of a layer below")
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=self._stack.fd)
        try:
            place = self._tree.data(inode.nid)
            if place is not None and place[0] == len(self._tree.devices):
                _write(fd, self._tree.carried(place[1], inode.size))
            elif place is not None:
                device, offset = self._device(place[0]), place[1]
                if inode.size <= _SMALL:
                    content = os.pread(device, inode.size, offset)
                    if len(content) != inode.size:
                        raise OSError(errno.EIO, f"the layer has only {len(content)} bytes of {inode.size}")
                    _write(fd, content)
                else:
                    os.ftruncate(fd, inode.size)
                    copy_data(device, offset, fd, 0, inode.size, check=self._check)
            apply_attributes(fd, self._tree, inode.nid)
        finally:
            os.close(fd)

    def _make_special(self, name: bytes, inode: Inode) -> None:
        """Make a symbolic link, device, fifo or socket."""
        here = self._stack.fd
        if stat.S_ISLNK(inode.mode):
            os.symlink(self._tree.readlink(inode.nid), name, dir_fd=here)
        else:
            os.mknod(name, stat.S_IFMT(inode.mode) | 0o600, inode.rdev, dir_fd=here)
        os.chown(name, inode.uid, inode.gid, dir_fd=here, follow_symlinks=False)
        # The xattr calls take no directory descriptor; the last component is not followed.
        below = b"/proc/self/fd/%d/%b" % (here, name)
        for key, value in _kept_xattrs(self._tree, inode.nid):
            os.setxattr(below, key, value, follow_symlinks=False)
        if not stat.S_ISLNK(inode.mode):
            # Made a moment ago in a directory that nobody else can enter, so this is no symbolic link.
            os.chmod(name, stat.S_IMODE(inode.mode), dir_fd=here)
        os.utime(name, ns=_times(inode), dir_fd=here, follow_symlinks=False)

    def _device(self, index: int) -> int:
        """Return an open descriptor of a file of the device table."""
        fd = self._devices.get(index)
        if fd is None:
            if len(self._devices) >= _DEVICES:
                os.close(self._devices.popitem(last=False)[1])
            fd = self._devices[index] = self._open_device(index)
        self._devices.move_to_end(index)
        return fd


def _write(fd: int, content: bytes | memoryview) -> None:
    """Write all of it: a full disk first takes a part, and says so at the next one."""
    while content:
        content = content[os.write(fd, content) :]


def _kept_xattrs(tree: Tree, nid: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the xattrs that a directory in overlayfs form has: the content's, and the mark of an opaque directory."""
    for name, value in tree.xattrs(nid).items():
        if not is_private_xattr(name) or name == OPAQUE_XATTR:
            yield name, value


def _times(inode: Inode) -> tuple[int, int]:
    """Return atime and mtime in nanoseconds; images have no atime."""
    mtime = inode.mtime * 1_000_000_000 + inode.mtime_ns
    return mtime, mtime
