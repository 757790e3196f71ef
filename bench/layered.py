"""A lookup through separate layer trees, as overlayfs does it: what a merged tree saves."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Tree
from layerfs.formats.whiteout import OPAQUE_XATTR

__all__ = ["LayeredLookup"]

#: The file type of character devices in a directory entry; whiteouts are among them.
_CHARACTER_TYPE = 3


class LayeredLookup:
    """Looks names up in a stack of layer trees, keeping for each directory the layers that it is merged from.

    This is the fair opponent of the merged tree: directories are decoded once, and the list of trees that hold a
    directory is remembered, as overlayfs remembers it in its inodes.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        """Stack ``trees``, bottom first as images list them."""
        self._top_first = list(reversed(trees))
        self._merged: dict[bytes, list[tuple[Tree, int]]] = {b"": [(tree, tree.root) for tree in self._top_first]}

    def resolve(self, path: bytes) -> tuple[Tree, int]:
        """Return the topmost layer's tree and inode number for a path that no link is part of."""
        directory = b""
        names = path.split(b"/")
        for name in names[:-1]:
            below = directory + b"/" + name
            if below not in self._merged:
                self._merged[below] = self._stack(directory, name)
            directory = below
        found = self._stack(directory, names[-1])
        if not found:
            raise FileNotFoundError(path)
        return found[0]

    def _stack(self, directory: bytes, name: bytes) -> list[tuple[Tree, int]]:
        found: list[tuple[Tree, int]] = []
        for tree, nid in self._merged[directory]:
            entry = tree.names(nid).get(name)
            if entry is None:
                continue
            child, kind = entry
            if kind == _CHARACTER_TYPE:
                inode = tree.inode(child)
                if stat.S_ISCHR(inode.mode) and inode.rdev == 0:
                    break
            if kind != DIRECTORY_TYPE:
                if not found:
                    found.append((tree, child))
                break
            found.append((tree, child))
            if OPAQUE_XATTR in tree.xattrs(child):
                break
        return found
