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
#: Directories that are kept in one list.
_BLOCK = 1_000


class Told:
    """A lower directory that was listed, and the inodes in it that have one name and are no directories.

    It takes a tree that numbers inodes as EROFS images of layerfs do: rising with the names in a directory, but for
    files with several names, and those of one directory not mixed with another's.

    Attributes:
        node: the directory.
        rows: its entries, kept if there are many.
        numbers: the inode number of each row, in ascending order; of a file that has a lower one, as it was met in
            another directory before, the number of the row before.
        counts: how often the kernel was told of each that has no node, and has not forgotten it. While there is a
            count, it keeps the directory alive, as a node in it would.
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
    """The directories that were listed, have files of their own and live, by the first number of each.

    In blocks, so that neither a walk over many directories nor their end takes time that grows with the square.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._heads: list[int] = []  # the first number of each block
        self._firsts: list[list[int]] = []
        self._told: list[list[Told]] = []

    def add(self, told: Told, first: int) -> None:
        """Take in a directory when its first number that is answered for is known."""
        told.first = first
        block = bisect_right(self._heads, first) - 1
        if block < 0:
            block = 0
            if not self._heads:
                self._heads, self._firsts, self._told = [first], [[]], [[]]
        firsts = self._firsts[block]
        place = bisect_left(firsts, first)
        firsts.insert(place, first)
        self._told[block].insert(place, told)
        self._heads[block] = firsts[0]
        if len(firsts) > _BLOCK:
            self._split(block)

    def _split(self, block: int) -> None:
        """Make two blocks of one."""
        half = _BLOCK // 2
        firsts, told = self._firsts[block], self._told[block]
        self._firsts[block : block + 1] = [firsts[:half], firsts[half:]]
        self._told[block : block + 1] = [told[:half], told[half:]]
        self._heads.insert(block + 1, firsts[half])

    def find(self, number: int) -> tuple[Told, int] | None:
        """Return where an inode number stands, as directory and row; None for one that has no count."""
        block = bisect_right(self._heads, number) - 1
        if block < 0:
            return None
        told = self._told[block][bisect_right(self._firsts[block], number) - 1]
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
        told.node.pins -= 1
        return count

    def forget(self, number: int, count: int) -> Node | None:
        """Take ``count`` back, of a number that has no node; return the directory that it no longer keeps alive."""
        found = self.find(number)
        if found is None:
            return None
        told, row = found
        left = told.counts[row] = max(told.counts[row] - count, 0)
        if left:
            return None
        told.node.pins -= 1
        return told.node

    def drop(self, told: Told) -> None:
        """Let go of a directory that dies; nothing in it has a count."""
        block = bisect_right(self._heads, told.first) - 1
        if not told.first or block < 0:
            return
        firsts, place = self._firsts[block], bisect_left(self._firsts[block], told.first)
        while place < len(firsts) and firsts[place] == told.first:  # one, but in a damaged tree
            if self._told[block][place] is told:
                del firsts[place], self._told[block][place]
                break
            place += 1
        if firsts:
            self._heads[block] = firsts[0]
        else:
            del self._heads[block], self._firsts[block], self._told[block]
