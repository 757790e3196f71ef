"""Writing the files of an image into a plain directory of the host, as any user.

As root everything is kept, but for owners that a user namespace lacks. An ordinary user gets the files as his own:
names, content with its larger holes, permission bits (but no set-user-ID, which would be his), times, links and user
xattrs; what only root can make is counted and told.

Nothing in an image can reach outside: everything is made relative to held descriptors, under names that must be new,
in a directory that was empty; no symlink is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from layerfs.errors import Conflict, UnsafePath
from layerfs.formats.erofs.reader import Inode
from layerfs.formats.whiteout import is_private_xattr
from layerfs.linux.directory_stack import DirectoryStack
from layerfs.linux.process import may_give_away
from layerfs.linux.sparse import write_sparse
from layerfs.store.view import ImageTree

__all__ = ["Skipped", "extract_tree"]

StrPath = str | os.PathLike[str]

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: What an xattr of a namespace answers that this user or file system does not have.
_NOT_OURS = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.E2BIG, errno.ENOSPC})
#: Paths that are kept to be named; the rest is counted.
_NAMED = 20


@dataclass(slots=True)
class Skipped:
    """What an extraction could not keep.

    Attributes:
        owners: entries that belong to somebody else in the image.
        devices: device nodes that were not made.
        xattrs: xattrs that were not set.
        set_ids: files that do not run with the rights of their owner or group any more.
        paths: some of the paths of the latter three.
    """

    owners: int = 0
    devices: int = 0
    xattrs: int = 0
    set_ids: int = 0
    paths: list[bytes] = field(default_factory=list)

    def note(self, path: bytes) -> None:
        """Remember a path, if there is room."""
        if len(self.paths) < _NAMED:
            self.paths.append(path)


def extract_tree(
    tree: ImageTree, nid: int, target: StrPath, *, leaf: bytes = b"", check: Callable[[], None] | None = None
) -> Skipped:
    """Write a directory of an image, or one file, into a directory.

    Args:
        tree: the image's files.
        nid: what to write: of a directory, its content and its own attributes.
        target: made if it is not there; must be empty.
        leaf: the name of a single file.
        check: polled once per entry.

    Raises:
        Conflict: the target has something in it.
        OSError: ENOSPC, EACCES, ENOTDIR.
        IntegrityError: a layer is missing or cut short.
    """
    path = os.fspath(target)
    os.makedirs(path, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.listdir(fd):
            raise Conflict(f"{path} is not empty", reason="exists", hint="Name an empty or a new directory.")
        with DirectoryStack(fd) as stack:
            return _Extraction(tree, stack, check).run(nid, leaf)
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Frame:
    """A directory under way."""

    nid: int
    entries: Iterator[tuple[bytes, int, int]]
    path: bytes


class _Extraction:
    """One run of :func:`extract_tree`."""

    def __init__(self, tree: ImageTree, stack: DirectoryStack, check: Callable[[], None] | None) -> None:
        self._tree = tree
        self._stack = stack
        self._check = check
        self._root = may_give_away()
        self._skipped = Skipped()
        self._linked: dict[int, bytes] = {}
        self._top = os.dup(stack.fd)

    def run(self, nid: int, leaf: bytes) -> Skipped:
        """Make everything; a directory's attributes come after its content, which would change its time."""
        try:
            if not stat.S_ISDIR(self._tree.inode(nid).mode):
                self._make(leaf, nid, b"/" + leaf)
                return self._skipped
            frames = [_Frame(nid, self._tree.readdir(nid), b"")]
            while frames:
                frame = frames[-1]
                entry = next(frame.entries, None)
                if entry is None:
                    self._dress(self._stack.fd, self._tree.inode(frame.nid), frame.path)
                    frames.pop()
                    if frames:
                        self._stack.pop()
                    continue
                if self._check is not None:
                    self._check()
                name, child, _ = entry
                path = frame.path + b"/" + name
                if self._make(name, child, path):
                    self._stack.push(name)
                    frames.append(_Frame(child, self._tree.readdir(child), path))
        finally:
            os.close(self._top)
        return self._skipped

    def _make(self, name: bytes, nid: int, path: bytes) -> bool:
        """Make one entry of the current directory; True for a directory that is to be entered."""
        if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
            raise UnsafePath(f"{os.fsdecode(path)!r} is no name of a file")
        inode = self._tree.inode(nid)
        here = self._stack.fd
        if stat.S_ISDIR(inode.mode):
            os.mkdir(name, 0o700, dir_fd=here)
            return True
        first = self._linked.get(nid)
        if first is not None:
            self._link(first, name)
            return False
        if inode.nlink > 1:
            self._linked[nid] = path
        if stat.S_ISREG(inode.mode):
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=here)
            try:
                write_sparse(fd, self._tree.pieces(nid), inode.size)
                self._dress(fd, inode, path)
            finally:
                os.close(fd)
            return False
        if stat.S_ISLNK(inode.mode):
            os.symlink(self._tree.readlink(nid), name, dir_fd=here)
        elif not self._mknod(name, inode):
            self._skipped.devices += 1
            self._skipped.note(path)
            self._linked.pop(nid, None)
            return False
        self._dress_special(name, inode, path)
        return False

    def _link(self, first: bytes, name: bytes) -> None:
        # The way to the first name runs through directories that were just made here; deep ones step by step.
        fd = os.dup(self._top)
        try:
            *parents, leaf = first.split(b"/")[1:]
            for part in parents:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = inner
            os.link(leaf, name, src_dir_fd=fd, dst_dir_fd=self._stack.fd, follow_symlinks=False)
        finally:
            os.close(fd)

    def _mknod(self, name: bytes, inode: Inode) -> bool:
        try:
            os.mknod(name, stat.S_IFMT(inode.mode) | 0o600, inode.rdev, dir_fd=self._stack.fd)
        except PermissionError:
            return False
        return True

    def _dress(self, fd: int, inode: Inode, path: bytes) -> None:
        """Set the attributes of an open file or directory."""
        owned = self._own(inode, lambda uid, gid: os.fchown(fd, uid, gid))
        for name, value in self._xattrs(inode.nid):
            self._set(fd, name, value, path)
        os.fchmod(fd, self._permissions(inode, path, owned=owned))
        os.utime(fd, ns=_times(inode))

    def _dress_special(self, name: bytes, inode: Inode, path: bytes) -> None:
        here = self._stack.fd
        owned = self._own(inode, lambda uid, gid: os.chown(name, uid, gid, dir_fd=here, follow_symlinks=False))
        place = b"/proc/self/fd/%d/%b" % (here, name)
        for key, value in self._xattrs(inode.nid):
            self._set(place, key, value, path)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(name, self._permissions(inode, path, owned=owned), dir_fd=here)
        os.utime(name, ns=_times(inode), dir_fd=here, follow_symlinks=False)

    def _own(self, inode: Inode, chown: Callable[[int, int], None]) -> bool:
        """Give a file its owner; return whether it is owned by the one that the image means."""
        if self._root:
            try:
                chown(inode.uid, inode.gid)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise  # else one that this user namespace does not have
            else:
                return True
        elif (inode.uid, inode.gid) == (os.geteuid(), os.getegid()):
            return True
        self._skipped.owners += 1
        return False

    def _set(self, where: int | bytes, name: bytes, value: bytes, path: bytes) -> None:
        try:
            os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
        except OSError as error:
            # Root of a user namespace may give files away, and not set what is trusted.
            if error.errno not in _NOT_OURS or (self._root and error.errno != errno.EPERM):
                raise
            self._skipped.xattrs += 1
            self._skipped.note(path)

    def _xattrs(self, nid: int) -> Iterator[tuple[bytes, bytes]]:
        return ((name, value) for name, value in self._tree.xattrs(nid).items() if not is_private_xattr(name))

    def _permissions(self, inode: Inode, path: bytes, *, owned: bool) -> int:
        mode = stat.S_IMODE(inode.mode)
        if self._root and owned:
            return mode
        if mode & 0o6000 and not stat.S_ISDIR(inode.mode):
            self._skipped.set_ids += 1
            self._skipped.note(path)
        # A set-ID bit would give the rights of whoever extracts, who is not who the image means.
        return mode & 0o1777


def _times(inode: Inode) -> tuple[int, int]:
    mtime = inode.mtime * 1_000_000_000 + inode.mtime_ns
    return mtime, mtime
