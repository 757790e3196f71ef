"""The inodes that somebody outside knows, each one object however many names it has.

Invariant: an inode number means one node while the node lives, and a node lives while the kernel remembers it, which it
does as long as somebody has it open, or something below it lives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import ESTALE
from typing import Any

from layerfs.union.lower import LowerTree, Reference
from layerfs.union.told import Told, ToldTable

__all__ = ["ROOT", "Content", "Node", "NodeTable"]

#: The number of the root directory, which FUSE fixes.
ROOT = 1
#: Numbers from here on are handed out one by one, where the usual one is still in use by a file that is gone.
_SPARE = 1 << 62


#: One number object for all inodes of a type: there are tens of thousands of them.
_KINDS = {kind << 12: kind << 12 for kind in range(16)}


class Content:
    """Where the bytes of a regular file are read and written: ``size`` of them from ``offset`` of an open file.

    Attributes:
        fd: its descriptor; -1 for an empty file of the lower tree.
        offset: where they begin in it.
        size: how many the lower tree has; None for a file of the upper, which the kernel knows.
        owned: whether the descriptor is to be closed.
        writable: whether it was opened for writing.
        appends: whether it was opened for appending alone: the file is append-only.
    """

    __slots__ = ("appends", "fd", "offset", "owned", "size", "writable")

    def __init__(
        self, fd: int, offset: int, size: int | None, *, owned: bool, writable: bool, appends: bool = False
    ) -> None:
        """Take all of it."""
        self.fd = fd
        self.offset = offset
        self.size = size
        self.owned = owned
        self.writable = writable
        self.appends = appends


class Node:
    """An inode of the union.

    Attributes:
        ino: its number.
        kind: the type bits of its mode.
        lower: what it is in the lower tree; None when there is nothing, or nothing that shows through.
        upper: whether it is in the upper directory.
        parent: the directory of its first name; None for the root, and for an inode without a name left.
        name: its first name.
        extra: other names, as (directory, name), or None.
        pins: how many names of living nodes lie in it; of a file, one while it has ``others``.
        lookups: how often the kernel was told of it and has not forgotten it.
        fd: O_PATH descriptor of an inode without a name, or -1.
        content: where its bytes are, once they were asked for; it may be closed at any time.
        listing: what a directory shows, once it was listed.
        told: what the kernel was told of it, of a directory that was listed when the lower tree alone had it.
        marked: whether whiteouts may be xattrs in its upper directory.
        bare: whether it is known to have no xattrs.
        others: the file of the lower tree of which it is a copy, if some names of that could not be linked to it yet.
    """

    __slots__ = (
        "bare", "content", "extra", "fd", "ino", "kind", "listing", "lookups", "lower", "marked", "name", "others",
        "parent", "pins", "told", "upper",
    )  # fmt: skip

    def __init__(self, ino: int, kind: int, lower: Reference | None, *, upper: bool) -> None:
        """Make a node without a name."""
        self.ino = ino
        self.kind = _KINDS.get(kind, kind)
        self.lower = lower
        self.upper = upper
        self.parent: Node | None = None
        self.name = b""
        self.extra: set[tuple[Node, bytes]] | None = None
        self.pins = 0
        self.lookups = 0
        self.fd = -1
        self.content: Content | None = None
        self.listing: Any = None
        self.told: Told | None = None
        self.marked = False
        self.bare = False
        self.others: Reference | None = None

    def close_content(self) -> None:
        """Let its bytes be looked for anew."""
        content, self.content = self.content, None
        if content is not None and content.owned:
            os.close(content.fd)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR

    @property
    def is_gone(self) -> bool:
        """Whether no name leads to it any more."""
        return self.parent is None and self.ino != ROOT


class NodeTable(dict[int, Node]):
    """All living nodes by number.

    A number that the kernel was told of in a listing gets its node when somebody asks for it; any other is ESTALE.

    Attributes:
        told: those numbers.
    """

    def __init__(self, root: Node, release: Callable[[Node], object], lower: LowerTree) -> None:
        """Begin with the root, which lives for ever.

        Args:
            root: its node.
            release: called with each directory that dies.
            lower: the lower tree.
        """
        super().__init__({ROOT: root})
        self._release = release
        self._lower = lower
        self._spare = _SPARE
        self.told = ToldTable()
        self._named: Told | None = None
        self._names: list[bytes] = []

    def __missing__(self, ino: int) -> Node:
        """Make the node of a number that the kernel was told of.

        Raises:
            OSError: ESTALE.
        """
        node, told, row = self._pass(ino)
        node.name = self._name(told, row)
        # What kept the directory alive is this node from now on.
        node.lookups, told.counts[row] = told.counts[row], 0
        self[ino] = node
        return node

    def reference(self, ino: int) -> Reference:
        """Return what a number that has no node means in the lower tree.

        Raises:
            OSError: ESTALE.
        """
        if self.told.find(ino) is None:
            raise OSError(ESTALE, os.strerror(ESTALE))
        return ino - self._lower.shift

    def look(self, ino: int) -> Node:
        """Return the node of a number for who only reads; one of the lower tree may be made for this time alone.

        It has no name then, and what is kept in it is lost.

        Raises:
            OSError: ESTALE.
        """
        return self.get(ino) or self._pass(ino)[0]

    def _pass(self, ino: int) -> tuple[Node, Told, int]:
        """Return a node for a number that the kernel was told of, which nobody knows of yet, and where that stands.

        Raises:
            OSError: ESTALE.
        """
        found = self.told.find(ino)
        if found is None:
            raise OSError(ESTALE, os.strerror(ESTALE))
        told, row = found
        reference = ino - self._lower.shift
        node = Node(ino, self._lower.kind(reference), reference, upper=False)
        node.parent = told.node
        return node, told, row

    def _name(self, told: Told, row: int) -> bytes:
        """Return the name of a row; those of one small directory are kept, as who reads a file soon reads the next."""
        if told.rows is not None:
            return told.rows.name(row)
        if told is not self._named:
            rows = self._lower.rows(told.node.lower)
            self._named, self._names = told, [] if rows is None else [name for name, _ in rows.read(0)]
        return self._names[row]

    def add(self, node: Node, parent: Node, name: bytes) -> None:
        """Take in a new node with its first name, and how often the kernel was told of it before."""
        self[node.ino] = node
        node.lookups += self.told.take(node.ino)
        node.parent, node.name = parent, name
        parent.pins += 1

    def add_nameless(self, node: Node) -> None:
        """Take in a new node that has no name yet."""
        self[node.ino] = node

    def close(self) -> None:
        """Close the descriptors of all nodes."""
        for node in self.values():
            node.close_content()
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1

    def spare_number(self) -> int:
        """Return a number that no inode ever had."""
        self._spare += 1
        return self._spare

    def name(self, node: Node, parent: Node, name: bytes) -> None:
        """Note a name of a node, which it may have already."""
        if node.parent is None:
            node.parent, node.name = parent, name
        elif node.parent is parent and node.name == name:
            return
        elif node.is_directory:  # it was moved, and has no second name
            node.parent.pins -= 1
            node.parent, node.name = parent, name
        else:
            extra = node.extra = node.extra or set()
            if (parent, name) in extra:
                return
            extra.add((parent, name))
        parent.pins += 1

    def unname(self, node: Node, parent: Node, name: bytes) -> None:
        """Forget a name of a node; the last one makes it an inode that is gone."""
        if node.parent is parent and node.name == name:
            if node.extra:
                node.parent, node.name = node.extra.pop()
            else:
                node.parent, node.name = None, b""
        elif node.extra and (parent, name) in node.extra:
            node.extra.remove((parent, name))
        else:
            return
        parent.pins -= 1
        self.drop(parent)

    def forget(self, ino: int, count: int) -> None:
        """Take back ``count`` lookups of the kernel."""
        node = self.get(ino)
        if node is None:
            above = self.told.forget(ino, count)
            if above is not None:
                self.drop(above)
        elif ino != ROOT:
            node.lookups -= count
            self.drop(node)

    def drop(self, node: Node) -> None:
        """Let a node die if nothing keeps it, and then what it alone kept."""
        while node.lookups <= 0 and not node.pins and node.ino != ROOT:
            if self.get(node.ino) is node:
                del self[node.ino]
            if node.kind == stat.S_IFDIR:
                self._release(node)
                if node.told is not None:
                    self.told.drop(node.told)
                    node.told = None
            node.listing = None
            if node.content is not None:
                node.close_content()
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
            for parent, _ in node.extra or ():
                parent.pins -= 1
                self.drop(parent)
            node.extra = None
            above, node.parent = node.parent, None
            if above is None:
                return
            above.pins -= 1
            node = above
