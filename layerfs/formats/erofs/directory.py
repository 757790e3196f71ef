"""The entries of one directory of an EROFS image, by row, for whoever hands them out piece by piece.

A row is an entry's number among the names in byte order, ``.`` and ``..`` left out. Nothing is kept of a directory but
the row that each of its blocks begins with, so one of any size is read from any row on, and costs only what is read.

Source: "Directories" in Documentation/filesystems/erofs.rst.
"""

from __future__ import annotations

import operator
import struct
from bisect import bisect_right
from collections.abc import Iterator

from layerfs.errors import FormatError
from layerfs.formats.erofs.layout import BLOCK, DIRENT, dirents

__all__ = ["DIRECTORY_TYPE", "DOTS", "Directory", "decode_block"]

#: The file type of directories, as entries carry it.
DIRECTORY_TYPE = 2
DOTS = frozenset({b".", b".."})


class Directory:
    """One directory; its length is the number of its rows. What is damaged raises :class:`FormatError`."""

    __slots__ = ("_content", "_nid", "_starts")

    def __init__(self, nid: int, content: memoryview) -> None:
        """Find out what row each block begins with.

        Args:
            nid: the directory's own inode number.
            content: its blocks.
        """
        self._nid = nid
        self._content = content
        starts = [0]
        count = 0
        try:
            for at in range(0, len(content), BLOCK):
                block = bytes(content[at : at + BLOCK])
                if at:
                    first = _name(block, 0)
                    starts.append(count - (first > b".") - (first > b".."))
                offset = DIRENT.unpack_from(block)[1]
                if offset % DIRENT.size or not 0 < offset <= len(block):
                    raise FormatError(f"directory {nid} is damaged")
                count += offset // DIRENT.size
        except struct.error as error:
            raise FormatError(f"directory {nid} is damaged") from error
        self._starts = [*starts, max(count - len(DOTS), starts[-1])]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, row: int) -> Iterator[tuple[bytes, int]]:
        """Yield names with inode numbers, from a row on."""
        starts = self._starts
        if row >= starts[-1]:
            return
        block = bisect_right(starts, row) - 1
        skipped = row - starts[block]
        for at in range(block * BLOCK, len(self._content), BLOCK):
            names, children, kinds = decode_block(bytes(self._content[at : at + BLOCK]), self._nid)
            for name, child, kind in zip(names, children, kinds, strict=True):
                if kind == DIRECTORY_TYPE and name in DOTS:
                    continue
                if skipped:
                    skipped -= 1
                    continue
                yield name, child

    def name(self, row: int) -> bytes:
        """Return the name of a row."""
        number = bisect_right(self._starts, row) - 1
        block = bytes(self._content[number * BLOCK : (number + 1) * BLOCK])
        index = row - self._starts[number]
        try:
            # The dots stand where the order of bytes puts them: behind "-x", before "a".
            first = _name(block, 0)
            for dots in (b".", b".."):
                if first <= dots <= _name(block, index):
                    index += 1
            return _name(block, index)
        except struct.error as error:
            raise FormatError(f"directory {self._nid} is damaged") from error


def decode_block(block: bytes, nid: int) -> tuple[list[bytes], tuple[int, ...], tuple[int, ...]]:
    """Return the names, inode numbers and file types of one block of a directory, the dots among them.

    Args:
        block: its bytes.
        nid: the directory's inode number.

    Raises:
        FormatError: it is damaged.
    """
    try:
        first = DIRENT.unpack_from(block)[1]
        fields = dirents(first // DIRENT.size).unpack_from(block)
    except struct.error as error:
        raise FormatError(f"directory {nid} is damaged") from error
    text = block[first:].rstrip(b"\0")
    if not fields or b"/" in text or b"\0" in text:
        raise FormatError(f"directory {nid} has a name that cannot be one")
    children, offsets, kinds = fields[::3], fields[1::3], fields[2::3]
    stops = (*offsets[1:], len(block.rstrip(b"\0")))
    if not all(map(operator.lt, offsets, stops)):
        raise FormatError(f"directory {nid} has a name outside its block")
    names = [block[offset:stop] for offset, stop in zip(offsets, stops, strict=True)]
    if DIRECTORY_TYPE in kinds:
        # The writer numbers directories from the root down: whoever walks a damaged tree comes to an end.
        for name, child, kind in zip(names, children, kinds, strict=True):
            if kind == DIRECTORY_TYPE and child <= nid and name not in DOTS:
                raise FormatError(f"directory {nid} is below itself")
    return names, children, kinds


def _name(block: bytes, index: int) -> bytes:
    """Return one name of a block."""
    _, start, *_ = DIRENT.unpack_from(block, index * DIRENT.size)
    if (index + 1) * DIRENT.size < DIRENT.unpack_from(block)[1]:
        return block[start : DIRENT.unpack_from(block, (index + 1) * DIRENT.size)[1]]
    return block[start:].rstrip(b"\0")
