"""Compression of layers on their way out: gzip, zstd or none, as streams of pieces.

The bytes depend on the library and its version, so the digest of a compressed layer is no name for its content; the
diffID is. Nothing of the machine or the time goes into them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol, cast

import zstandard
from isal import isal_zlib

from layerfs.errors import InvalidReference
from layerfs.formats.media_type import Compression

__all__ = ["LEVELS", "check_level", "compress"]

#: The levels that each compression has.
LEVELS = {"none": range(0), "gzip": range(1, 10), "zstd": range(1, 23)}

#: Without a wish: isal's own best, eleven times as fast as zlib's usual level and a tenth larger.
_ISAL_LEVEL = 2
_ZSTD_LEVEL = 3

#: zlib's words for a gzip header and the largest window.
_GZIP_WINDOW = 31


class _Stream(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def check_level(compression: Compression, level: int | None) -> None:
    """Refuse a level that a compression does not have.

    Raises:
        InvalidReference: it is none of its levels.
    """
    levels = LEVELS[compression]
    if level is not None and level not in levels:
        known = f"{levels[0]} to {levels[-1]}" if levels else "no levels"
        raise InvalidReference(f"{compression} has {known}, not {level}")


def compress(pieces: Iterable[bytes], compression: Compression, level: int | None = None) -> Iterator[bytes]:
    """Yield a stream compressed.

    Args:
        pieces: the stream.
        compression: ``none`` passes them through.
        level: of the compression; None takes what is fast and good enough: isal for gzip, 3 for zstd.

    Raises:
        InvalidReference: see :func:`check_level`.
    """
    check_level(compression, level)
    if compression == "none":
        yield from pieces
        return
    stream = _stream(compression, level)
    for piece in pieces:
        if packed := stream.compress(piece):
            yield packed
    if packed := stream.flush():
        yield packed


def _stream(compression: Compression, level: int | None) -> _Stream:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=level or _ZSTD_LEVEL, write_checksum=True).compressobj()
    if level is None:
        return cast("_Stream", isal_zlib.compressobj(_ISAL_LEVEL, wbits=_GZIP_WINDOW))
    return zlib.compressobj(level, wbits=_GZIP_WINDOW)
