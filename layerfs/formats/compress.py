"""Compression of layers, the same bytes every time: no name and no time in a header.

gzip is zlib's own, of the level that other builders use. What comes out depends on the zlib at hand all the same: the
digest that is stable is the one of the uncompressed layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import zstandard
from isal import isal_zlib

from layerfs.errors import InvalidReference

__all__ = ["COMPRESSIONS", "Compressor", "check_level", "compress"]

#: What a layer may be compressed with.
COMPRESSIONS = ("none", "gzip", "zstd")

_GZIP_LEVEL = 6
#: Tells zlib to write the gzip header, with time 0.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_ZSTD_LEVEL = 3

#: The levels that each compression has.
_LEVELS = {"none": range(0), "gzip": range(1, 10), "zstd": range(1, 23)}

#: isal's best: eleven times as fast as zlib's usual level, and a tenth larger.
_FAST_LEVEL = 2


class Compressor:
    """Compresses one stream."""

    def __init__(self, compression: str, level: int | None = None, *, fast: bool = False) -> None:
        """Start a stream.

        Args:
            compression: one of :data:`COMPRESSIONS`.
            level: of it; None takes the usual one.
            fast: without a level, take time for more important than size.

        Raises:
            InvalidReference: there is no such compression, or it has no such level.
        """
        check_level(compression, level)
        self._stream: Any = None
        if compression == "gzip":
            if level is None and fast:
                self._stream = isal_zlib.compressobj(_FAST_LEVEL, wbits=_GZIP_WINDOW)
            else:
                self._stream = zlib.compressobj(level or _GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        elif compression == "zstd":
            self._stream = zstandard.ZstdCompressor(level=level or _ZSTD_LEVEL, write_checksum=True).compressobj()

    def compress(self, data: bytes) -> bytes:
        """Take bytes and return those that are ready, maybe none."""
        return data if self._stream is None else bytes(self._stream.compress(data))

    def flush(self) -> bytes:
        """End the stream and return the rest."""
        return b"" if self._stream is None else bytes(self._stream.flush())


def check_level(compression: str, level: int | None) -> None:
    """Refuse a compression that there is not, or a level that it does not have.

    Raises:
        InvalidReference: it is so.
    """
    if compression not in COMPRESSIONS:
        hint = f"Use one of {', '.join(COMPRESSIONS)}."
        raise InvalidReference(f"no such compression: {compression}", hint=hint)
    levels = _LEVELS[compression]
    if level is not None and level not in levels:
        known = f"levels {levels[0]} to {levels[-1]}" if levels else "no levels"
        raise InvalidReference(f"{compression} has {known}, not {level}")


def compress(pieces: Iterable[bytes], compressor: Compressor) -> Iterator[bytes]:
    """Yield a stream compressed, in pieces none of which is empty."""
    for piece in pieces:
        if packed := compressor.compress(piece):
            yield packed
    if packed := compressor.flush():
        yield packed
