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
from errno import ELOOP, ENOTDIR, EPERM

from layerfs.union.attribute import Attributes
from layerfs.union.base import UnionPart
from layerfs.union.lower import Reference
from layerfs.union.node import Node
from layerfs.union.upper import Upper

__all__ = ["NOT_LOOKED_UP", "ListingPart"]

#: Stands for the number of links of an entry of which there is no more than a name: nobody may ask for its inode.
NOT_LOOKED_UP = -1

#: Called with name, attributes and the place behind the entry; False says that it was not taken.
Emit = Callable[[bytes, Attributes, int], bool]
#: The place of the first name behind the dots.
_FIRST = 3
_TYPE = stat.S_IFMT(0o177777)
#: Names in listings of lower directories that are kept, 100 bytes each; what the kernel asks for next is in them.
_KEPT = 20_000
#: Entries of an upper directory that are handed out at a time: others wait for that, and it takes 8 µs for each.
_SLICE = 64
#: A name with what it is in the lower tree, if the upper has nothing of that name.
_Row = tuple[bytes, Reference | None]


class _Listing:
    """The names of a directory, each with a place that it keeps as long as it is there.

    Names of the lower tree have the places that they have there, so these need no memory; those that the upper alone
    has come after them, in the order in which they were first seen.

    Attributes:
        places: in ascending order.
        rows: what lies at each place.
    """

    __slots__ = ("_next", "_own", "places", "rows")

    def __init__(self) -> None:
        self.places: Sequence[int] = ()
        self.rows: list[_Row] = []
        self._own: dict[bytes, int] = {}
        self._next = 0

    def take(self, lower: list[_Row]) -> None:
        """Show all names of the lower tree and nothing else."""
        self.places, self.rows = range(_FIRST, _FIRST + len(lower)), lower

    def merge(self, lower: list[_Row], visible: set[bytes], hidden: set[bytes]) -> None:
        """Show names of the upper with those of the lower tree that nothing hides."""
        places: list[int] = []
        rows: list[_Row] = []
        below = set()
        for place, (name, reference) in enumerate(lower, _FIRST):
            below.add(name)
            if name not in hidden:
                places.append(place)
                rows.append((name, None if name in visible else reference))
        own = visible - below
        self._next = max(self._next, _FIRST + len(lower))
        self._own = {name: place for name, place in self._own.items() if name in own}
        for name in own - self._own.keys():
            self._own[name] = self._next
            self._next += 1
        self.places, self.rows = [*places, *self._own.values()], [*rows, *((name, None) for name in self._own)]


class ListingPart(UnionPart):
    """Listing directories, by inode number."""

    def readdir(self, ino: int, place: int, emit: Emit) -> None:
        """Hand out some entries from a place on, until one is not taken; none says that there are no more.

        Each taken one counts as a lookup, but for the dots and those whose number of links is :data:`NOT_LOOKED_UP`.

        A name that is neither made nor removed meanwhile comes exactly once, whatever happens to others.

        Args:
            ino: the directory.
            place: 0 takes a new look at it; else what came with the last entry seen.
            emit: takes an entry.

        Raises:
            OSError: EIO, ENOTDIR, ESTALE.
        """
        node = self._nodes[ino]
        known = node.listing
        if known is not None and place >= 2 and not (known.places and place < known.places[-1]):
            return  # every reading ends with a request that finds nothing
        if not node.is_directory:
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        if place < 2:
            if node.is_gone:
                return
            # Of these two nobody looks at more than number and type; the kernel knows them by their own names.
            if place < 1 and not emit(b".", _bare(node), 1):
                return
            if not emit(b"..", _bare(node.parent or node), 2):
                return
        listing = self._listing(node, new=place == 0)
        if self._owners is None and not self._static_nlink and not node.upper:
            self._hand_out_lower(node, listing.rows, max(place + 1 - _FIRST, 0), emit)
            return
        places, rows = listing.places, listing.rows
        taken = 0
        for index in range(bisect_right(places, place), len(rows)):
            if taken == _SLICE:
                return
            name = rows[index][0]
            try:
                found = self._find(node, name)
            except OSError as error:
                if error.errno not in {EPERM, ELOOP}:
                    raise
                # A redirect, or what is written to: there is a name and no more.
                if not emit(name, _bare(node)._replace(nlink=NOT_LOOKED_UP), places[index]):
                    return
                taken += 1
                continue
            if found is None:
                continue
            taken += 1
            child, status = found
            try:
                if not emit(name, self._attributes(child, status), places[index]):
                    return
                child.lookups += 1
            finally:
                self._nodes.drop(child)

    def _hand_out_lower(self, node: Node, rows: list[_Row], start: int, emit: Emit) -> None:
        """Hand out entries of a directory that the lower tree alone has, and shows as they are.

        Nothing can lie above them, so neither the upper nor a node of it is asked. A cold walk spends its time here.
        """
        nodes, lower, parted = self._nodes, self._lower, self._parted
        get, attributes_of, is_merged = nodes.get, lower.attributes, lower.is_merged
        for index in range(start, len(rows)):
            name, reference = rows[index]
            if reference is None:  # a redirect, which is not followed
                if not emit(name, _bare(node)._replace(nlink=NOT_LOOKED_UP), index + _FIRST):
                    return
                continue
            attributes = attributes_of(reference)
            number, mode = attributes.ino, attributes.mode
            child = get(number)
            if (child is not None and child.upper) or number in parted:
                # Another name of a file that was copied up; this one is linked to it now, if it can be.
                found = self._find(node, name)
                if found is None:
                    continue
                child = found[0]
                attributes = self._attributes(*found)
            elif mode & _TYPE == stat.S_IFDIR and is_merged(reference):
                attributes = attributes._replace(nlink=1)
            if not emit(name, attributes, index + _FIRST):
                if child is not None:
                    nodes.drop(child)
                return
            if child is None:
                child = Node(number, mode & _TYPE, reference, upper=False)
                nodes.add(child, node, name)
            elif not child.upper:
                nodes.name(child, node, name)
            child.lookups += 1

    def fsyncdir(self, ino: int) -> None:
        """Make the names in a directory durable."""
        node = self._nodes[ino]
        if node.upper and self._upper is not None and self._late is not None and not node.is_gone:
            self._late.finish()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(b".", flags, dir_fd=self._upper.directory(node))
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _listing(self, node: Node, *, new: bool) -> _Listing:
        """Return the listing of a directory, up to date if it is to be a new one."""
        found: _Listing | None = node.listing
        if found is None or (new and node.upper):
            # It is the node's when it is complete: one that failed half-way would stay, and show nothing.
            found = found or _Listing()
            lower = [] if node.lower is None or node.is_gone else self._lower.entries(node.lower)
            if not node.upper or self._upper is None:
                found.take(lower)
                node.listing = found
                self._keep_listing(node)
            else:
                found.merge(lower, *self._names_above(node, self._upper))
                node.listing = found
        return found

    def _keep_listing(self, node: Node) -> None:
        """Bound what listings of lower directories take; that of an upper one alone knows the places in it."""
        self._listings.append((node, len(node.listing.rows) + 1))
        self._listed += len(node.listing.rows) + 1
        while self._listed > _KEPT and len(self._listings) > 1:
            oldest, size = self._listings.popleft()
            self._listed -= size
            if not oldest.upper:
                oldest.listing = None

    def _is_empty(self, node: Node) -> bool:
        """Whether a directory shows no name."""
        if node.is_gone:
            return True
        hidden: set[bytes] = set()
        if node.upper and self._upper is not None:
            visible, hidden = self._names_above(node, self._upper)
            if visible:
                return False
        return node.lower is None or all(name in hidden for name, _ in self._lower.entries(node.lower))

    def _names_above(self, node: Node, upper: Upper) -> tuple[set[bytes], set[bytes]]:
        """Return the names that a directory has in the upper: what is visible, and whiteouts."""
        visible: set[bytes] = set()
        hidden: set[bytes] = set()
        if node.is_gone:
            return visible, hidden
        fd = upper.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, upper.directory(node))
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    special = not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))
                    is_hidden = False
                    if (special and not entry.is_symlink()) or node.marked:
                        try:
                            is_hidden = upper.find(node, name)[1]
                        except FileNotFoundError:
                            continue
                    (hidden if is_hidden else visible).add(name)
        finally:
            os.close(fd)
        return visible, hidden


def _bare(node: Node) -> Attributes:
    """Return number and type of a directory."""
    return tuple.__new__(Attributes, (node.ino, stat.S_IFDIR, 0, 0, 0, 0, 0, 0, 0, 0, 0))
