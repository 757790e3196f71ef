"""The quick way through headers that hold nothing unusual, which nearly all headers of a layer are.

Parsing is the part of a load that only one thread can do, and a header's owner, time and checksum have mostly been seen
a few members before: their fields are looked up as they stand, instead of being taken apart again.
"""

from __future__ import annotations

import struct
from typing import TypeVar
from zlib import adler32

from layerfs.errors import FormatError
from layerfs.formats.tar.header import ADLER_MODULUS, BLOCK, parse_number
from layerfs.formats.tar.member import MAX_ID, Member

__all__ = ["PlainHeaders"]

_Value = TypeVar("_Value")

#: name, mode+uid+gid, size, mtime, chksum, type, linkname, magic, prefix; see header.py.
_FIELDS = struct.Struct("100s24s12s12s8s1s100s6s82x155s12x")

#: Different fields remembered of each kind. A layer of 60,000 members has a few thousand sizes and checksums.
_REMEMBERED = 1 << 14

#: Sizes and times below this fit the signed 64 bits of every kernel, whatever is added to them.
_PLAIN_LIMIT = 1 << 62


class PlainHeaders:
    """Reads headers of files, links and directories that need no second look, and leaves all others alone."""

    def __init__(self) -> None:
        """Start with nothing remembered."""
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._numbers: dict[bytes, int] = {}
        self._sums: dict[bytes, int] = {}

    def parse(self, block: bytes, offset: int) -> Member | None:
        """Return the member that a header describes by itself, or None when anything about it is odd or wrong.

        Args:
            block: the header.
            offset: where in the archive it stands.
        """
        name, owner, size_field, time_field, checksum, kind, link, magic, prefix = _FIELDS.unpack(block)
        numbers = self._numbers
        try:
            expected = self._sums.get(checksum) or self._learn_sum(checksum)
            if adler32(block) & 0xFFFF != expected:
                return None
            mode, uid, gid = self._owners.get(owner) or self._learn_owner(owner)
            mtime = numbers.get(time_field, -1)
            if mtime < 0:
                mtime = self._learn_number(time_field)
            size = 0
            if kind == b"0":
                size = numbers.get(size_field, -1)
                if size < 0:
                    size = self._learn_number(size_field)
            elif kind not in b"125":
                return None
        except FormatError:
            return None
        name = name.partition(b"\0")[0]
        if prefix[0]:
            if magic == b"ustar " or prefix[130]:
                return None  # other things than a prefix, or behind one
            if magic == b"ustar\0":
                name = prefix.partition(b"\0")[0] + b"/" + name
        return Member(
            name, kind, mode, uid, gid, mtime, 0, size, link.partition(b"\0")[0] if link[0] else b"", 0, 0, None,
            offset, offset + BLOCK, size, None,
        )  # fmt: skip

    def _learn_sum(self, field: bytes) -> int:
        """Return the low half of Adler-32 that a header with this checksum has."""
        # The checksum counts its own eight bytes as spaces, Adler-32 as they are.
        found = (parse_number(field) + (adler32(field) & 0xFFFF) - 8 * 0x20) % ADLER_MODULUS
        return _remember(self._sums, field, found)

    def _learn_owner(self, field: bytes) -> tuple[int, int, int]:
        """Return the mode, user and group in these fields."""
        mode, uid, gid = (parse_number(field[at : at + 8]) for at in (0, 8, 16))
        if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
            raise FormatError("an owner that is not plain")
        return _remember(self._owners, field, (mode & 0o7777, uid, gid))

    def _learn_number(self, field: bytes) -> int:
        """Return the size or time in a field."""
        number = parse_number(field)
        if not 0 <= number < _PLAIN_LIMIT:
            raise FormatError("a number that is not plain")
        return _remember(self._numbers, field, number)


def _remember(known: dict[bytes, _Value], field: bytes, value: _Value) -> _Value:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[field] = value
    return value
