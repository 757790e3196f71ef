"""Reading directories.

A listing is taken when reading begins, and again after a rewind; a name keeps its place in it as long as it is there.
So nothing that happens to other names while it is read can make it lose or repeat one, and nobody needs a handle to go
on. Attributes are those of the moment when an entry is handed out, and a name that is gone by then is left out.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Sequence
from errno import ENOTDIR

from layerfs.union.attribute import Attributes
from layerfs.union.base import UnionPart
from layerfs.union.lower import Reference
from layerfs.union.node import Node

__all__ = ["ListingPart"]

#: Called with name, attributes and the place behind the entry; False says that it was not taken.
Emit = Callable[[bytes, Attributes, int], bool]
#: The place of the first name behind the dots.
_FIRST = 3
#: Names in listings that are kept, 100 bytes each, so that the kernel can ask for the rest of one.
_KEPT = 20_000
#: A name with what it is in the lower tree, if the upper has nothing of that name.
_Row = tuple[bytes, Reference | None]


class _Listing:
    """The names of a directory, each with a place that it keeps as long as it is there.

    Attributes:
        places: in ascending order.
        rows: what lies at each place.
        next: the place for the next new name.
    """

    __slots__ = ("next", "places", "rows")

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows
        self.places: Sequence[int] = range(_FIRST, _FIRST + len(rows))
        self.next = _FIRST + len(rows)

    def update(self, rows: list[_Row]) -> None:
        """Take the names that there are now: those that were there keep their places, new ones come last."""
        now = dict(rows)
        kept = [(place, row[0]) for place, row in zip(self.places, self.rows, strict=True) if row[0] in now]
        places = [place for place, _ in kept]
        ordered: list[_Row] = [(name, now.pop(name)) for _, name in kept]
        places += range(self.next, self.next + len(now))
        self.next += len(now)
        ordered += now.items()
        self.places, self.rows = places, ordered


class ListingPart(UnionPart):
    """Listing directories, by inode number."""

    def readdir(self, ino: int, place: int, emit: Emit) -> None:
        """Hand out entries from a place on, until one is not taken; each taken one counts as a lookup, but the dots.

        A name that is neither made nor removed meanwhile comes exactly once, whatever happens to others.

        Args:
            ino: the directory.
            place: 0 takes a new look at it; else what came with the last entry seen.
            emit: takes an entry.

        Raises:
            OSError: EIO, ENOTDIR, ESTALE.
        """
        node = self._nodes[ino]
        if not node.is_directory:
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        if place < 2:
            if node.is_gone:
                return
            for index, (name, dots) in enumerate(((b".", node), (b"..", node.parent or node)), start=1):
                if index > place and not emit(name, self._attributes(dots), index):
                    return
        listing = self._listing(node, new=place == 0)
        lower, get = self._lower, self._nodes.get
        plain = self._owners is None and not self._static_nlink and not node.upper
        places, rows = listing.places, listing.rows
        for index in range(bisect_right(places, place), len(rows)):
            name, reference = rows[index]
            if plain:
                # Nothing can lie above here, so neither the upper nor a node of it need be asked.
                attributes = lower.attributes(reference)
                child = get(attributes.ino)
                if child is None or not child.upper:
                    if stat.S_ISDIR(attributes.mode) and lower.is_merged(reference):
                        attributes = attributes._replace(nlink=1)
                    if not emit(name, attributes, places[index]):
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
                if not emit(name, self._attributes(child), places[index]):
                    return
                child.lookups += 1
            finally:
                self._nodes.drop(child)

    def fsyncdir(self, ino: int) -> None:
        """Make the names in a directory durable."""
        node = self._nodes[ino]
        if node.upper and self._upper is not None and self._sync and not node.is_gone:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(b".", flags, dir_fd=self._upper.directory(node))
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _listing(self, node: Node, *, new: bool) -> _Listing:
        """Return the listing of a directory, up to date if it is to be a new one."""
        found = self._listings.get(node)
        if found is None:
            found = self._listings[node] = _Listing(self._rows(node))
            self._listed += len(found.rows)
            while self._listed > _KEPT and len(self._listings) > 1:
                self._listed -= len(self._listings.popitem(last=False)[1].rows)
        elif new and node.upper:
            before = len(found.rows)
            found.update(self._rows(node))
            self._listed += len(found.rows) - before
        return found

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
