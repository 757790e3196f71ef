"""What the kernel was told of in a listing and has not asked about since: for that there is no node.

A walk tells the kernel of every inode of an image, and it asks about few of them again. Of each of the others all that
has to be known is how often it was told of it: twelve bytes, where a node takes six hundred.

Invariant: a number is that of a node or has a count here, never both; a node that is made takes the count over.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from layerfs.formats.erofs.directory import Directory

if TYPE_CHECKING:
    from layerfs.union.node import Node

__all__ = ["Told", "ToldTable"]

#: Entries from which on it takes longer to find where a directory's blocks begin than it is worth the memory.
_MANY = 64


class Told:
    """A lower directory that was listed, and the inodes in it that have one name and are no directories.

    It takes a tree that numbers inodes as EROFS images of layerfs do: rising with the names in a directory, but for
    files with several names, and those of one directory not mixed with another's.

    Attributes:
        node: the directory.
        rows: its entries, kept if there are many.
        numbers: the inode number of each row, in ascending order; of a row that is not answered for here the number
            before it.
        counts: how often the kernel was told of each and has not forgotten it.
        filled: how many rows are known yet.
        first: the lowest number that is answered for here, 0 as long as there is none.
    """

    __slots__ = ("counts", "filled", "first", "node", "numbers", "rows")

    def __init__(self, node: Node, rows: Directory) -> None:
        """Begin with none.

        Args:
            node: the directory.
            rows: its entries.
        """
        self.node = node
        self.rows = rows if len(rows) > _MANY else None
        self.numbers = array("Q", bytes(8 * len(rows)))
        self.counts = array("I", bytes(4 * len(rows)))
        self.filled = 0
        self.first = 0


class ToldTable:
    """All directories that were listed and live."""

    def __init__(self) -> None:
        """Begin with none."""
        self._firsts: list[int] = []
        self._told: list[Told] = []

    def add(self, told: Told, first: int) -> None:
        """Take in a directory when its first number that is answered for is known."""
        told.first = first
        place = bisect_left(self._firsts, first)
        self._firsts.insert(place, first)
        self._told.insert(place, told)

    def find(self, number: int) -> tuple[Told, int] | None:
        """Return where an inode number stands, as directory and row; None for one that has no count."""
        place = bisect_right(self._firsts, number) - 1
        if place < 0:
            return None
        told = self._told[place]
        row = bisect_left(told.numbers, number, 0, told.filled)
        if row == told.filled or told.numbers[row] != number or not told.counts[row]:
            return None
        return told, row

    def take(self, number: int) -> int:
        """Return the count of a number, for the node that is made for it, and leave none."""
        found = self.find(number)
        if found is None:
            return 0
        told, row = found
        count, told.counts[row] = told.counts[row], 0
        return count

    def forget(self, number: int, count: int) -> None:
        """Take ``count`` back, of a number that has no node."""
        found = self.find(number)
        if found is not None:
            told, row = found
            told.counts[row] = max(told.counts[row] - count, 0)

    def drop(self, told: Told) -> None:
        """Let go of a directory that dies, and so of what is in it."""
        if told.first:
            place = bisect_left(self._firsts, told.first)
            if place < len(self._told) and self._told[place] is told:
                del self._firsts[place], self._told[place]
