"""Reading directories.

A listing is taken when reading begins, and again after a rewind; places in it are counted. So nothing that happens to
other names while it is read can make it lose or repeat one. Attributes are those of the moment when an entry is handed
out, and a name that is gone by then is left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import ENOTDIR

from layerfs.union.attribute import Attributes
from layerfs.union.base import UnionPart
from layerfs.union.lower import Reference
from layerfs.union.node import Node

__all__ = ["ListingPart"]

#: Called with name, attributes and the place behind the entry; False says that it was not taken.
Emit = Callable[[bytes, Attributes, int], bool]
#: A name with what it is in the lower tree, if the upper has nothing of that name.
_Row = tuple[bytes, Reference | None]


class _Directory:
    """An open directory."""

    __slots__ = ("node", "rows")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.rows: list[_Row] | None = None


class ListingPart(UnionPart):
    """Open directories."""

    def opendir(self, ino: int) -> int:
        """Open a directory.

        Returns:
            A handle for the other methods.

        Raises:
            OSError: ENOTDIR, ESTALE.
        """
        node = self._nodes[ino]
        if not node.is_directory:
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        node.opens += 1
        self._serial += 1
        self._directories[self._serial] = _Directory(node)
        return self._serial

    def readdir(self, handle: int, place: int, emit: Emit) -> None:
        """Hand out entries from a place on, until one is not taken; each taken one counts as a lookup, but the dots.

        Args:
            handle: an open directory.
            place: 0 takes a new listing; else what came with the last entry seen.
            emit: takes an entry.

        Raises:
            OSError: EIO.
        """
        directory = self._directories[handle]
        node = directory.node
        if place == 0 or directory.rows is None:
            directory.rows = self._rows(node)
        rows = directory.rows
        if place < 2 and not node.is_gone:
            for index, (name, dots) in enumerate(((b".", node), (b"..", node.parent or node)), start=1):
                if index > place and not emit(name, self._attributes(dots), index):
                    return
            place = 2
        lower, get = self._lower, self._nodes.get
        plain = self._owners is None and not self._static_nlink and not node.upper
        for index in range(max(0, place - 2), len(rows)):
            name, reference = rows[index]
            if plain:
                # Nothing can lie above here, so neither the upper nor a node of it need be asked.
                attributes = lower.attributes(reference)
                child = get(attributes.ino)
                if child is None or not child.upper:
                    if stat.S_ISDIR(attributes.mode) and lower.is_merged(reference):
                        attributes = attributes._replace(nlink=1)
                    if not emit(name, attributes, index + 3):
                        return
                    if child is None:
                        child = Node(attributes.ino, stat.S_IFMT(attributes.mode), reference, upper=False)
                        self._nodes.add(child, node, name)
                    elif not child.is_gone:
                        self._nodes.name(child, node, name)
                    child.lookups += 1
                    continue
            child = self._find(node, name)
            if child is None:
                continue
            try:
                if not emit(name, self._attributes(child), index + 3):
                    return
                child.lookups += 1
            finally:
                self._nodes.drop(child)

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        directory = self._directories.pop(handle, None)
        if directory is not None:
            directory.node.opens -= 1
            self._nodes.drop(directory.node)

    def fsyncdir(self, handle: int) -> None:
        """Make the names in a directory durable."""
        node = self._directories[handle].node
        if node.upper and self._upper is not None and not node.is_gone:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(b".", flags, dir_fd=self._upper.directory(node))
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _is_empty(self, node: Node) -> bool:
        """Whether a directory shows no name."""
        return not self._rows(node)

    def _rows(self, node: Node) -> list[_Row]:
        """Return the names that a directory shows."""
        if node.is_gone:
            return []
        if not node.upper or self._upper is None:
            return list(self._lower.entries(node.lower))
        rows: list[_Row] = []
        known: set[bytes] = set()
        top = self._upper.directory(node)
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    known.add(name)
                    special = not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))
                    if (special and not entry.is_symlink()) or node.marked:
                        try:
                            if self._upper.find(node, name)[1]:
                                continue
                        except FileNotFoundError:
                            continue
                    rows.append((name, None))
        finally:
            os.close(fd)
        if node.lower is not None:
            rows += [row for row in self._lower.entries(node.lower) if row[0] not in known]
        return rows
