"""One path of one state of a tree: what comparisons look at, and what layers are written from.

A path may lie in an image's tree or in a container's upper directory; whoever compares or writes does not care. Content
and xattrs are read when they are asked for. An :class:`UpperEntry` can be asked as long as the walk that made it stands
where it stood, that is until the next step is taken from it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Protocol, cast

from layerfs.changeset.base_tree import BaseTree
from layerfs.errors import Conflict
from layerfs.formats.whiteout import OVERRIDE_XATTR, USER_PREFIX, parse_override

__all__ = [
    "IGNORED_XATTRS",
    "ContentTree",
    "Entry",
    "TreeEntry",
    "UpperEntry",
    "attributes_of",
    "content_xattrs",
    "read_xattrs",
    "same_content",
]

_READ = 1 << 20

#: Labels of the host's security policy; they say where a file lies, not what it is.
IGNORED_XATTRS = frozenset({b"security.selinux", b"security.evm", b"security.ima"})
#: What listing or reading xattrs answers where there are none to have.
_NO_XATTRS = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT})


class ContentTree(BaseTree, Protocol):
    """A lower tree whose files can be read: :class:`layerfs.store.view.ImageTree`."""

    def readlink(self, nid: int) -> bytes:
        """Return the target of a symlink."""

    def pieces(self, nid: int) -> Iterator[bytes]:
        """Yield the bytes of a regular file."""

    def place(self, nid: int) -> tuple[str, int] | None:
        """Return where a regular file's bytes lie, layer file and offset, or None: it is empty, or carried."""


class Entry(Protocol):
    """One path of one state. Units as in :class:`os.stat_result`; ``mtime`` in seconds, ``mtime_ns`` on top.

    ``identity`` is the same for the names of one inode, ``links`` how many names it has.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    rdev: int
    links: int
    identity: object

    def xattrs(self) -> dict[bytes, bytes]:
        """Return the xattrs that belong to the content, by full name."""

    def target(self) -> bytes:
        """Return the target of a symlink."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of a regular file."""


class TreeEntry:
    """A path of an image's tree."""

    __slots__ = ("_tree", "gid", "identity", "links", "mode", "mtime", "mtime_ns", "nid", "rdev", "size", "uid")

    def __init__(self, tree: BaseTree, nid: int) -> None:
        """Look an inode up."""
        inode = tree.inode(nid)
        self._tree = tree
        self.nid = nid
        self.mode, self.uid, self.gid = inode.mode, inode.uid, inode.gid
        self.mtime, self.mtime_ns = inode.mtime, inode.mtime_ns
        self.size, self.rdev, self.links = inode.size, inode.rdev, inode.nlink
        self.identity: object = (id(tree), nid)

    def xattrs(self) -> dict[bytes, bytes]:
        """Return the xattrs that belong to the content, by full name."""
        return content_xattrs(self._tree.xattrs(self.nid), None)

    def target(self) -> bytes:
        """Return the target of a symlink."""
        return self.tree.readlink(self.nid)

    def place(self) -> tuple[str, int] | None:
        """Return where a regular file's bytes lie, or None."""
        return self.tree.place(self.nid)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of a regular file."""
        return self.tree.pieces(self.nid)

    @property
    def tree(self) -> ContentTree:
        """The tree that it is in, which must be one with its layers."""
        assert hasattr(self._tree, "pieces"), "only a tree with its layers has contents"
        return cast("ContentTree", self._tree)


class UpperEntry:
    """A path of an upper directory, or of any directory of the host."""

    __slots__ = (
        "_fd", "_name", "_prefix", "_through", "_xattrs", "gid", "identity", "links", "mode", "mtime", "mtime_ns",
        "rdev", "size", "uid",
    )  # fmt: skip

    def __init__(
        self,
        fd: int,
        name: bytes,
        status: os.stat_result,
        prefix: bytes,
        through: Entry | None,
        *,
        overridden: bool = False,
    ) -> None:
        """Describe an entry.

        Args:
            fd: the directory that it is in; may be used until the walk goes on.
            name: its name there.
            status: not followed.
            prefix: of the xattrs that are overlayfs's marks.
            through: what a file with ``metacopy`` takes its bytes from.
            overridden: whether owners and modes may be kept in xattrs. Where that is not so, anybody in the container
                may have set these.
        """
        self._fd, self._name, self._prefix, self._through = fd, name, prefix, through
        self._xattrs: dict[bytes, bytes] | None = None
        self.mode, self.uid, self.gid = status.st_mode, status.st_uid, status.st_gid
        if prefix == USER_PREFIX:
            self._take_meant_owner(overridden=overridden)
        self.mtime, self.mtime_ns = divmod(status.st_mtime_ns, 1_000_000_000)
        self.size, self.links = status.st_size, status.st_nlink
        self.rdev = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
        self.identity: object = (status.st_dev, status.st_ino)

    def _take_meant_owner(self, *, overridden: bool) -> None:
        """Take owner and mode as the FUSE union keeps them for who may not give files away: its user is root inside."""
        if overridden and (stat.S_ISREG(self.mode) or stat.S_ISDIR(self.mode)):
            meant = parse_override(self.marks().get(OVERRIDE_XATTR, b""))
            if meant is not None:
                self.uid, self.gid, bits = meant
                self.mode = stat.S_IFMT(self.mode) | bits
                return
        if os.geteuid() != 0:
            self.uid = 0 if self.uid == os.geteuid() else self.uid
            self.gid = 0 if self.gid == os.getegid() else self.gid

    def xattrs(self) -> dict[bytes, bytes]:
        """Return the xattrs that belong to the content, by full name."""
        return content_xattrs(self.marks(), self._prefix)

    def marks(self) -> dict[bytes, bytes]:
        """Return all xattrs, overlayfs's marks too. What was read once is kept."""
        if self._xattrs is None:
            self._xattrs = read_xattrs(b"/proc/self/fd/%d/%b" % (self._fd, self._name))
        return self._xattrs

    def target(self) -> bytes:
        """Return the target of a symlink."""
        return os.readlink(self._name, dir_fd=self._fd)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of a regular file.

        Raises:
            Conflict: it is not the file any more that it was.
            OSError: EIO, EACCES.
        """
        if self._through is not None and self._prefix + b"metacopy" in self.marks():
            yield from self._through.pieces()
            return
        fd = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self.identity:
                raise Conflict(f"{os.fsdecode(self._name)} was replaced while it was read", reason="changed")
            while piece := os.read(fd, _READ):
                yield piece
        finally:
            os.close(fd)


def attributes_of(entry: Entry, *, time: bool = False) -> tuple[int, ...]:
    """Return what is compared of an entry; of directories the size never counts, and the time only with ``time``."""
    own = (entry.mode, entry.uid, entry.gid)
    if stat.S_ISDIR(entry.mode):
        return (*own, entry.mtime, entry.mtime_ns) if time else own
    device = entry.rdev if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode) else 0
    return (*own, device, entry.size, entry.mtime, entry.mtime_ns)


def same_content(one: Entry, other: Entry) -> bool:
    """Compare the bytes of two regular files of one size, or the targets of two symlinks."""
    if stat.S_ISLNK(one.mode):
        return one.target() == other.target()
    if not stat.S_ISREG(one.mode):
        return True
    if isinstance(one, TreeEntry) and isinstance(other, TreeEntry):
        place = one.place()
        if place is not None and place == other.place():
            return True  # the same bytes of the same layer
    left, right = one.pieces(), other.pieces()
    ahead, behind = b"", b""
    while True:
        ahead = ahead or next(left, b"")
        behind = behind or next(right, b"")
        size = min(len(ahead), len(behind))
        if not size:
            return not ahead and not behind
        if ahead[:size] != behind[:size]:
            return False
        ahead, behind = ahead[size:], behind[size:]


def read_xattrs(where: int | bytes) -> dict[bytes, bytes]:
    """Read all xattrs of a descriptor or of a path, whose last component is not followed.

    Raises:
        OSError: what is neither "none there" nor "not supported".
    """
    found: dict[bytes, bytes] = {}
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as err:
        if err.errno in _NO_XATTRS:
            return found
        raise
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(where, name, follow_symlinks=follow)
        except OSError as err:
            if err.errno not in _NO_XATTRS:
                raise
    return found


def content_xattrs(xattrs: dict[bytes, bytes], prefix: bytes | None) -> dict[bytes, bytes]:
    """Return the xattrs that belong to the content: without overlayfs's marks and the host's labels."""
    return {
        name: value
        for name, value in xattrs.items()
        if name not in IGNORED_XATTRS
        and not (prefix is not None and (name.startswith(prefix) or name == OVERRIDE_XATTR))
    }
