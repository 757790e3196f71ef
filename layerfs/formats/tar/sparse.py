"""Sparse members: the four ways in which tars write the map of a file with holes.

Sources: GNU tar manual, "Storing Sparse Files" (old GNU format, PAX formats 0.0, 0.1 and 1.0).
"""

from __future__ import annotations

from layerfs.errors import FormatError, LimitExceeded, quoted
from layerfs.formats.tar.header import BLOCK, parse_number
from layerfs.formats.tar.member import SparseMap

__all__ = [
    "MAX_PIECES",
    "check_map",
    "map_from_records",
    "pieces_of_block",
    "text_map",
]

#: Pieces of one sparse member. GNU tar makes one per run of data; a real file of this many would be all fragments,
#: and each costs some 200 bytes of memory. Go's reader stops at 1 MiB of text, which is about as many.
MAX_PIECES = 1 << 17

#: The keys of PAX format 0.0, one pair after the other.
_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")

_PIECES_IN_HEADER = 4
_PIECES_IN_EXTENSION = 21


def pieces_of_block(block: bytes, *, extension: bool) -> tuple[list[tuple[int, int]], bool]:
    """Return the pieces in an old GNU sparse header or extension block, and whether another extension follows."""
    start, count, flag = (0, _PIECES_IN_EXTENSION, 504) if extension else (386, _PIECES_IN_HEADER, 482)
    pieces = []
    for index in range(count):
        at = start + 24 * index
        if not block[at]:
            break
        pieces.append((parse_number(block[at : at + 12]), parse_number(block[at + 12 : at + 24])))
    return pieces, block[flag] not in (0, 0x30)


def map_from_records(records: list[tuple[bytes, bytes]]) -> list[tuple[int, int]] | None:
    """Return the pieces of PAX formats 0.0 (repeated keys) or 0.1 (one list), or None when neither is there.

    Raises:
        FormatError: it is no map, or has both forms, of which readers take one or the other.
    """
    pairs = [(key, value) for key, value in records if key in _PAIR]
    lists = [value for key, value in records if key == b"GNU.sparse.map"]
    counts = [value for key, value in records if key == b"GNU.sparse.numblocks"]
    if pairs and lists:
        raise FormatError("sparse map stands in two forms")
    if len(pairs) % 2 or any(key != _PAIR[number % 2] for number, (key, _) in enumerate(pairs)):
        raise FormatError("sparse map has an offset without a length")
    numbers = [value for _, value in pairs]
    if lists:
        numbers = lists[-1].split(b",") if lists[-1] else []
        if len(numbers) % 2:
            raise FormatError("sparse map has an offset without a length")
    if counts and 2 * _decimal(counts[-1]) != len(numbers):
        raise FormatError(f"sparse map of {len(numbers) // 2} pieces, not {_decimal(counts[-1])}")
    if not numbers and not lists and not counts:
        return None
    found = [_decimal(number) for number in numbers]
    return list(zip(found[::2], found[1::2], strict=True))


def text_map(payload: bytes) -> tuple[list[tuple[int, int]], int] | None:
    """Return the pieces of a PAX 1.0 map and the bytes it fills, or None while ``payload`` is still too short.

    Args:
        payload: the member's stored data from its start, whole blocks.
    """
    lines = payload.split(b"\n")
    if len(lines) < 2:
        _refuse_endless(payload)
        return None
    count = _decimal(lines[0])
    if count > MAX_PIECES:
        raise LimitExceeded(f"sparse map of {count} pieces, at most {MAX_PIECES} are taken")
    needed = 1 + 2 * count
    if len(lines) <= needed:
        return None
    numbers = [_decimal(line) for line in lines[1:needed]]
    used = sum(len(line) + 1 for line in lines[:needed])
    return list(zip(numbers[::2], numbers[1::2], strict=True)), -(-used // BLOCK) * BLOCK


def check_map(pieces: list[tuple[int, int]], size: int, stored: int) -> SparseMap:
    """Return the map after checking it: ascending, inside the file, and as long together as the stored data.

    Raises:
        FormatError: any of these does not hold.
        LimitExceeded: more than :data:`MAX_PIECES` pieces.
    """
    if len(pieces) > MAX_PIECES:
        raise LimitExceeded(f"sparse map of {len(pieces)} pieces, at most {MAX_PIECES} are taken")
    position = total = 0
    for offset, length in pieces:
        if length < 0 or offset < position or offset + length > size:
            raise FormatError(f"sparse map piece {offset}+{length} overlaps or leaves the file of {size} bytes")
        position = offset + length
        total += length
    if total != stored:
        raise FormatError(f"sparse map covers {total} bytes, but {stored} are stored")
    return tuple(piece for piece in pieces if piece[1])


def _decimal(text: bytes) -> int:
    if not text or len(text) > 20 or not text.isdigit():
        raise FormatError(f"sparse map has {quoted(text, 30)} where a number belongs")
    return int(text)


def _refuse_endless(payload: bytes) -> None:
    if len(payload) > BLOCK:
        raise FormatError("sparse map has no line end")
