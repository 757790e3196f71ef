"""Reading directories.

A listing is taken when reading begins, and again after a rewind; a name keeps its place in it as long as it is there.
So nothing that happens to other names while it is read can make it lose or repeat one, and nobody needs a handle to go
on. Attributes are those of the moment when an entry is handed out, and a name that is gone by then is left out.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from errno import ELOOP, ENOTDIR, EPERM

from layerfs.errors import FormatError
from layerfs.formats.erofs.directory import Directory
from layerfs.union.attribute import Attributes
from layerfs.union.base import UnionPart
from layerfs.union.lower import Reference
from layerfs.union.node import Node
from layerfs.union.told import Told
from layerfs.union.upper import Upper

__all__ = ["NOT_LOOKED_UP", "ListingPart"]

#: Stands for the number of links of an entry of which there is no more than a name: nobody may ask for its inode.
NOT_LOOKED_UP = -1

#: Name, attributes, and the place behind the entry.
Entry = tuple[bytes, Attributes, int]
#: The place of the first name behind the dots.
_FIRST = 3
_TYPE, _DIRECTORY = stat.S_IFMT(0o177777), stat.S_IFDIR
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

    def readdir(self, ino: int, place: int) -> Iterator[Entry]:
        """Yield entries from a place on; none says that there are no more.

        An entry counts as a lookup when the next one is asked for, or the end is reached: whoever has no room for it
        asks for no more. Not so the dots, and those whose number of links is :data:`NOT_LOOKED_UP`.

        A name that is neither made nor removed meanwhile comes exactly once, whatever happens to others.

        Args:
            ino: the directory.
            place: 0 takes a new look at it; else what came with the last entry seen.

        Yields:
            Name, attributes, and the place behind the entry.

        Raises:
            OSError: EIO, ENOTDIR, ESTALE.
        """
        node = self._nodes[ino]
        if not node.is_directory:
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        if place < 2 and node.is_gone:
            return iter(())
        if not node.upper:
            told = node.told
            if told is not None and place + 1 - _FIRST >= len(told.numbers):
                return iter(())  # every reading ends with a request that finds nothing
            rows = told.rows if told is not None and told.rows is not None else self._lower.rows(node.lower)
            if rows is not None:
                if told is None:
                    told = node.told = Told(node, rows)
                return self._read_rows(node, told, rows, place)
        return self._read_names(node, place)

    def _read_rows(self, node: Node, told: Told, rows: Directory, place: int) -> Iterator[Entry]:
        """Read a directory that the lower tree alone has, as :meth:`readdir` does.

        Nothing can lie above it, so the upper is not asked, and files need no node. A cold walk spends its time here.
        """
        if place < 2:
            yield from _dots(node, place)
        nodes, numbers, counts, filled = self._nodes, told.numbers, told.counts, told.filled
        get, attributes_of, alters = nodes.get, self._lower.attributes, self._alters
        start = max(place + 1 - _FIRST, 0)
        row = min(start, filled)
        before = numbers[filled - 1] if filled else 0
        for name, reference in rows.read(row):
            found = attributes_of(reference)
            number, nlink, is_directory = found.ino, found.nlink, found.mode & _TYPE == _DIRECTORY
            if row == filled:
                if row == len(numbers):
                    raise FormatError(f"directory {node.ino} has more entries than its blocks say")
                before = max(before, number)
                numbers[row] = before
                told.filled = filled = row + 1
                if not told.first and nlink < 2:
                    nodes.told.add(told, number)
            if row >= start:
                if nlink > 1 and not is_directory:
                    # Another name of it may be copied up; this one is linked to the copy now, if it can be.
                    yield from self._looked_up(self._lower_node(node, name, reference), None, name, row + _FIRST)
                else:
                    yield name, self._show(found) if alters else found, row + _FIRST
                    child = get(number)
                    if child is not None:
                        child.lookups += 1
                    elif is_directory:  # whoever walks looks into it next
                        child = Node(number, _DIRECTORY, reference, upper=False)
                        child.lookups = 1
                        nodes.add(child, node, name)
                    else:
                        if not counts[row]:
                            node.pins += 1
                        counts[row] += 1
            row += 1

    def _read_names(self, node: Node, place: int) -> Iterator[Entry]:
        """Read a directory of which the upper or a tree without rows has something, as :meth:`readdir` does."""
        yield from _dots(node, place)
        known = node.listing
        if known is not None and place >= 2 and not (known.places and place < known.places[-1]):
            return  # every reading ends with a request that finds nothing
        listing = self._listing(node, new=place == 0)
        places, rows = listing.places, listing.rows
        taken = 0
        for index in range(bisect_right(places, place), len(rows)):
            if taken == _SLICE:
                return
            name, reference = rows[index]
            found: tuple[Node, os.stat_result | None] | None
            try:
                if node.upper or reference is None:
                    found = self._find(node, name)
                else:
                    found = self._lower_node(node, name, reference), None
            except OSError as error:
                if error.errno not in {EPERM, ELOOP}:
                    raise
                # A redirect, or what is written to: there is a name and no more.
                yield name, _bare(node)._replace(nlink=NOT_LOOKED_UP), places[index]
                taken += 1
                continue
            if found is None:
                continue
            taken += 1
            yield from self._looked_up(*found, name, places[index])

    def _looked_up(self, child: Node, status: os.stat_result | None, name: bytes, place: int) -> Iterator[Entry]:
        """Yield the entry of a node that may live for it alone."""
        try:
            yield name, self._attributes(child, status), place
            child.lookups += 1
        finally:
            self._nodes.drop(child)

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


def _dots(node: Node, place: int) -> Iterator[Entry]:
    """Yield the entries of which nobody looks at more than number and type; the kernel knows them by other names."""
    if place < 1:
        yield b".", _bare(node), 1
    if place < 2:
        yield b"..", _bare(node.parent or node), 2


def _bare(node: Node) -> Attributes:
    """Return number and type of a directory."""
    return tuple.__new__(Attributes, (node.ino, stat.S_IFDIR, 0, 0, 0, 0, 0, 0, 0, 0, 0))
