"""A file tree in memory: what the tar of a layer describes and what ``tree.erofs`` is written from.

Nodes are what inodes are elsewhere: the same :class:`Node` under two names is a hard link. A tree is built from a layer
tar by :class:`LayerTree`, stacked by :mod:`layerfs.formats.merge`, and written by :mod:`layerfs.formats.erofs.writer`.
Paths are resolved inside this tree only, so no name in an archive can reach anything else.
"""

from __future__ import annotations

import stat

from layerfs.errors import FormatError, LimitExceeded, UnsafePath, quoted
from layerfs.formats.tar.member import MAX_NAME, Member, split_path
from layerfs.formats.whiteout import (
    AUFS_PREFIX,
    IMPLICIT_XATTR,
    LINK_XATTR,
    OPAQUE_XATTR,
    hidden_name,
    is_whiteout_device,
)
from layerfs.formats.xattr import accepted_xattrs

__all__ = ["MAX_IMPLICIT", "MAX_SYMLINKS", "MAX_TEXT", "LayerTree", "Node", "directory", "hard_link_marker", "whiteout"]

#: Symlinks followed while one path is resolved: the kernel's own limit (include/linux/namei.h, MAXSYMLINKS).
MAX_SYMLINKS = 40

#: The longest symlink target: PATH_MAX without its NUL, which is what the kernel can hold.
_MAX_TARGET = 4095

#: Directories that only exist because a path runs through them. Real layers have a few hundred; a path of 64 KiB can
#: ask for 32,768 of them, so that without a limit an archive of a megabyte costs gigabytes of memory.
MAX_IMPLICIT = 1 << 18

#: Bytes of link targets and of different xattrs in one tree. Real layers have a few megabytes; while a tree is written
#: each costs up to five times its size in memory, and an archive of a megabyte can hold gigabytes of them.
MAX_TEXT = 32 << 20

#: Paths of directories that are remembered, and the longest that is; tars list a directory's entries together.
_MAX_PARENTS, _MAX_PARENT_PATH = 1 << 14, 4096

#: Shared by all implicit directories: xattrs of a node are replaced, never changed.
_IMPLICIT = {IMPLICIT_XATTR: b"y"}

_TYPES = {
    b"0": stat.S_IFREG, b"2": stat.S_IFLNK, b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}  # fmt: skip


class Node:
    """One inode of a tree.

    Attributes:
        mode: type and permission bits.
        uid: owner.
        gid: group.
        mtime: seconds since the epoch, may be negative.
        mtime_ns: nanoseconds on top, 0..999,999,999.
        size: bytes of a regular file.
        rdev: device number as ``os.makedev`` makes it; 0 for all but devices.
        xattrs: by full name, or None.
        children: name to node for directories, else None.
        target: the target of a symlink, else None.
        device: which layer tar holds a regular file's bytes: a key of the caller's choosing, None for an empty file.
        offset: where in that tar they begin, in bytes, a multiple of 512.
    """

    __slots__ = (
        "children", "device", "gid", "links", "mode", "mtime", "mtime_ns", "offset", "position", "rdev", "seen", "size",
        "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        mtime_ns: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        """Make a node without content."""
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.size = 0
        self.rdev = 0
        self.children: dict[bytes, Node] | None = None
        self.target: bytes | None = None
        self.device: object = None
        self.offset = 0
        # Scratch space of the writer: a token of the run that saw this node, its link count and place in the image.
        self.seen: object = None
        self.links = 0
        self.position = 0

    @property
    def is_whiteout(self) -> bool:
        """Whether this is overlayfs's whiteout."""
        return is_whiteout_device(self.mode, self.rdev)

    @property
    def is_opaque(self) -> bool:
        """Whether this directory hides all that lower layers have in it."""
        return self.xattrs is not None and OPAQUE_XATTR in self.xattrs

    @property
    def is_implicit(self) -> bool:
        """Whether this directory only exists because a path of the layer runs through it."""
        return self.xattrs is not None and IMPLICIT_XATTR in self.xattrs

    def set_xattr(self, name: bytes, value: bytes) -> None:
        """Set one xattr without touching a dictionary that another node may share."""
        self.xattrs = {**(self.xattrs or {}), name: value}

    def drop_xattr(self, name: bytes) -> None:
        """Remove one xattr, if it is there, without touching a dictionary that another node may share."""
        if self.xattrs and name in self.xattrs:
            self.xattrs = {key: value for key, value in self.xattrs.items() if key != name} or None


def directory(*, implicit: bool) -> Node:
    """Return a new empty directory, root's and 0755."""
    node = Node(stat.S_IFDIR | 0o755, xattrs=_IMPLICIT if implicit else None)
    node.children = {}
    return node


def whiteout() -> Node:
    """Return a new whiteout."""
    return Node(stat.S_IFCHR)


def hard_link_marker(target: bytes) -> Node:
    """Return the stand-in for a hard link whose target only a lower layer can have; mode and content are none."""
    return Node(stat.S_IFREG, xattrs={LINK_XATTR: target})


class LayerTree:
    """Builds the tree of one layer from the members of its tar, in order.

    The rules are those of OCI image-spec v1.1 layer.md: a later entry for a path replaces an earlier one, whiteouts act
    on lower layers only, and parents that have no entry exist all the same.

    Attributes:
        root: the tree so far. Whiteouts are added by :meth:`finish`.
        entries: members taken so far.
        text: bytes of link targets and of different xattrs so far.
    """

    def __init__(self, device: object) -> None:
        """Start with an empty, implicit root.

        Args:
            device: the key under which nodes name this layer's tar.
        """
        self.root = directory(implicit=True)
        self.entries = 0
        self.text = 0
        self._xattrs: dict[tuple[bytes, bytes], bytes] = {}
        self._device = device
        self._implicit = 0
        self._parents: dict[bytes, Node] = {}  # dirname as written -> directory, until a directory is replaced
        self._hidden: list[tuple[Node, bytes]] = []  # whiteouts, applied at the end: order in the tar means nothing

    def add(self, member: Member) -> Node | None:
        """Take one member; return the node when it is a regular file with bytes of its own, else None.

        Raises:
            UnsafePath: the name or link leaves the tree, or is a whiteout of nothing.
            FormatError: the member contradicts the tree (a file below a file, a link to a directory).
            LimitExceeded: a name too long to be one, or more text than :data:`MAX_TEXT`.
        """
        self.entries += 1
        name = member.name
        kind = member.kind
        if kind == b"5":
            self._add_directory(member)
            return None
        found = self._parent_of(name)
        if found is None:
            return None
        parent, leaf = found
        if not leaf:
            raise UnsafePath(f"the root of the layer is a {_kind_name(kind)}, not a directory")
        assert parent.children is not None
        if leaf.startswith(b".wh."):
            hidden = hidden_name(leaf)
            if hidden is not None:
                if hidden != leaf:
                    self._hidden.append((parent, hidden))
                return None
        node = self._link_target(member) if kind == b"1" else self._make(member)
        old = parent.children.get(leaf)
        if old is not None and (old.children is not None or old.target is not None):
            self._parents.clear()
        parent.children[leaf] = node
        return node if kind == b"0" and node.size else None

    def finish(self) -> Node:
        """Apply the whiteouts and return the root; nothing may be added afterwards."""
        unnamed: list[tuple[Node, bytes]] = []
        for parent, hidden in self._hidden:
            assert parent.children is not None
            if not hidden:
                parent.set_xattr(OPAQUE_XATTR, b"y")
                continue
            own = parent.children.get(hidden)
            if own is None:
                parent.children[hidden] = whiteout()
            elif own.children is not None:
                if own.is_implicit:
                    unnamed.append((parent, hidden))
                own.set_xattr(OPAQUE_XATTR, b"y")
        shown = [_shows_anything((parent.children or {})[hidden]) for parent, hidden in unnamed]
        for (parent, hidden), shows in zip(unnamed, shown, strict=True):
            assert parent.children is not None
            if shows:
                parent.children[hidden].drop_xattr(IMPLICIT_XATTR)
            else:  # the layer only has it to hide what is in it
                parent.children[hidden] = whiteout()
        self._hidden.clear()
        self._parents.clear()
        return self.root

    def _make(self, member: Member) -> Node:
        xattrs = member.xattrs
        node = Node(
            _TYPES[member.kind] | member.mode,
            member.uid,
            member.gid,
            member.mtime,
            member.mtime_ns,
            self._accepted(member, _TYPES[member.kind]) if xattrs else None,
        )
        kind = member.kind
        if kind == b"0":
            if member.size:
                node.size = member.size
                node.device = self._device
                node.offset = member.data_offset
        elif kind == b"2":
            target = member.link
            if not target or len(target) > _MAX_TARGET or b"\0" in target:
                raise FormatError(f"symlink {quoted(member.name)} has a target of {len(target)} bytes")
            node.mode = stat.S_IFLNK | 0o777
            node.target = target
            node.size = len(target)
            self._count(len(target))
        elif kind != b"6":
            node.rdev = _makedev(member.major, member.minor)
            if node.is_whiteout:
                raise UnsafePath(f"{quoted(member.name)} is a character device 0:0, overlayfs's whiteout")
        return node

    def _add_directory(self, member: Member) -> None:
        xattrs = self._accepted(member, stat.S_IFDIR) if member.xattrs else None
        path = member.name.rstrip(b"/") or member.name
        found = self._parent_of(path)
        if found is None:
            return
        parent, leaf = found
        hidden = hidden_name(leaf)
        if hidden == leaf:
            return
        if hidden is not None:
            raise UnsafePath(f"directory {quoted(member.name)} has the name of a whiteout")
        node = self._directory(parent, leaf) if leaf else self.root
        self._remember(path, node)
        node.mode = stat.S_IFDIR | member.mode
        node.uid, node.gid, node.mtime, node.mtime_ns = member.uid, member.gid, member.mtime, member.mtime_ns
        node.xattrs = xattrs

    def _directory(self, parent: Node, name: bytes) -> Node:
        """Return the directory of that name, made if there is none."""
        assert parent.children is not None
        node = parent.children.get(name)
        if node is not None and node.children is not None:
            return node
        made = parent.children[name] = directory(implicit=False)
        if node is not None:
            # What was no directory has already put an end to the directory below, if there is one.
            self._parents.clear()
            self._hidden.append((made, b""))
        return made

    def _accepted(self, member: Member, kind: int) -> dict[bytes, bytes] | None:
        """Return the xattrs that a file of a type may have; those that were there before share their memory."""
        accepted = accepted_xattrs(member.xattrs or {}, kind, member.name)
        if accepted is None:
            return None
        for key, value in accepted.items():
            known = self._xattrs.get((key, value))
            if known is None:
                self._count(len(key) + len(value))
                known = self._xattrs[key, value] = value
            accepted[key] = known
        return accepted

    def _count(self, size: int) -> None:
        self.text += size
        if self.text > MAX_TEXT:
            raise LimitExceeded(f"link targets and xattrs of more than {MAX_TEXT >> 20} MiB")

    def _parent_of(self, path: bytes) -> tuple[Node, bytes] | None:
        """Return the directory of a path's last name, and that name, empty for the root; None for AUFS's own files."""
        prefix, _, leaf = path.rpartition(b"/")
        parent = self._parents.get(prefix)
        if parent is not None and _is_plain(leaf):
            return parent, leaf
        parts = split_path(path)
        if _is_bookkeeping(parts):
            return None
        name = parts.pop() if parts else b""
        # "a/" and "a/." name a, but what stands before their slash is no parent of it.
        return self._parent(prefix if name == leaf else None, parts), name

    def _parent(self, prefix: bytes | None, parts: list[bytes]) -> Node:
        """Return the directory of these components, made where missing; symlinks of this layer are followed.

        Args:
            prefix: the components as the archive spells them, to remember the directory by, or None.
            parts: the components.
        """
        found = self._parents.get(prefix) if prefix is not None else None
        if found is None:
            found, _ = self._walk(parts, make=True)
            assert found is not None
            if prefix is not None:
                self._remember(prefix, found)
        return found

    def _remember(self, path: bytes, found: Node) -> None:
        """Keep what directory a path of the archive means, as it is spelt there."""
        if len(path) <= _MAX_PARENT_PATH:
            if len(self._parents) >= _MAX_PARENTS:
                self._parents.clear()
            self._parents[path] = found

    def _walk(self, parts: list[bytes], *, make: bool) -> tuple[Node | None, list[bytes]]:
        """Resolve components to a directory within this tree; None if it is not there and may not be made.

        The second value is the way to it without this layer's symlinks, as far as this layer knows it.
        """
        trail = [self.root]
        names: list[bytes] = []
        todo = parts[::-1]
        budget = MAX_SYMLINKS
        while todo:
            name = todo.pop()
            if name == b"..":  # only ever from a symlink's target; the root is its own parent
                if names:
                    trail.pop()
                    names.pop()
                continue
            here = trail[-1]
            assert here.children is not None
            node = here.children.get(name)
            if node is None:
                if not make:
                    return None, [*names, name, *todo[::-1]]
                if name.startswith(b".wh.") and hidden_name(name) is not None:
                    raise UnsafePath(f"a path runs through the whiteout {quoted(name)}")
                if len(name) > MAX_NAME:
                    raise LimitExceeded(f"name of {len(name)} bytes in a symlink target")
                self._implicit += 1
                if self._implicit > MAX_IMPLICIT:
                    raise LimitExceeded(f"paths run through more than {MAX_IMPLICIT} directories without an entry")
                node = here.children[name] = directory(implicit=True)
            if node.target is not None:
                budget -= 1
                if budget < 0:
                    raise UnsafePath(f"more than {MAX_SYMLINKS} symlinks in {quoted(b'/'.join(parts))}")
                if node.target.startswith(b"/"):
                    del trail[1:], names[:]
                todo += [part for part in node.target.split(b"/")[::-1] if part and part != b"."]
            elif node.children is None:
                raise FormatError(f"{quoted(b'/'.join(parts))} runs through a file")
            else:
                trail.append(node)
                names.append(name)
        return trail[-1], names

    def _link_target(self, member: Member) -> Node:
        parts = split_path(member.link, what="link target")
        if not parts:
            raise UnsafePath(f"hard link {quoted(member.name)} points at the root")
        leaf = parts.pop()
        parent, way = self._walk(parts, make=False)
        node = parent.children.get(leaf) if parent is not None and parent.children is not None else None
        if node is None:
            path = b"/".join((*way, leaf))
            self._count(len(path))
            return hard_link_marker(path)
        if node.children is not None:
            raise FormatError(f"hard link {quoted(member.name)} points at the directory {quoted(member.link)}")
        if not (node.xattrs and LINK_XATTR in node.xattrs):
            self._redress(node, member)
        return node

    def _redress(self, node: Node, member: Member) -> None:
        """Give a file what the entry of another name of it says: the last one counts, as for podman and containerd."""
        if (member.uid, member.gid) != (node.uid, node.gid):
            node.drop_xattr(b"security.capability")  # as podman does
        if node.target is None:
            node.mode = stat.S_IFMT(node.mode) | member.mode
        node.uid, node.gid, node.mtime, node.mtime_ns = member.uid, member.gid, member.mtime, member.mtime_ns
        accepted = self._accepted(member, stat.S_IFMT(node.mode)) if member.xattrs else None
        if accepted:
            node.xattrs = {**(node.xattrs or {}), **accepted}


def _makedev(major: int, minor: int) -> int:
    """Return ``os.makedev`` of glibc without importing os: the split halves of major and minor."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


def _is_plain(name: bytes) -> bool:
    """Return whether text behind the last slash of a path is a name that can stand for itself."""
    return 0 < len(name) <= MAX_NAME and name not in {b".", b".."} and b"\0" not in name


def _is_bookkeeping(parts: list[bytes]) -> bool:
    """Return whether a path lies in one of AUFS's own directories, which are not part of the layer."""
    return any(part.startswith(AUFS_PREFIX) for part in parts[:-1])


def _kind_name(kind: bytes) -> str:
    return {b"0": "file", b"1": "hard link", b"2": "symlink"}.get(kind, "special file")


def _shows_anything(top: Node) -> bool:
    """Return whether a directory without an entry of its own has anything but whiteouts in it."""
    stack = [top]
    while stack:
        for node in (stack.pop().children or {}).values():
            if node.children is None:
                if not node.is_whiteout:
                    return True
            elif not node.is_implicit:
                return True
            else:
                stack.append(node)
    return False
