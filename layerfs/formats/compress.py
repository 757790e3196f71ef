"""Compression of layers, the same bytes every time: no name and no time in a header.

gzip is zlib's own, of the level that other builders use. What comes out depends on the zlib at hand all the same: the
digest that is stable is the one of the uncompressed layer.
"""

from __future__ import annotations

import zlib
from typing import Any

import zstandard

from layerfs.errors import InvalidReference

__all__ = ["COMPRESSIONS", "Compressor"]

#: What a layer may be compressed with.
COMPRESSIONS = ("none", "gzip", "zstd")

_GZIP_LEVEL = 6
#: Tells zlib to write the gzip header, with time 0.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_ZSTD_LEVEL = 3


class Compressor:
    """Compresses one stream."""

    def __init__(self, compression: str) -> None:
        """Start a stream.

        Raises:
            InvalidReference: there is no such compression.
        """
        if compression not in COMPRESSIONS:
            hint = f"Use one of {', '.join(COMPRESSIONS)}."
            raise InvalidReference(f"no such compression: {compression}", hint=hint)
        self._stream: Any = None
        if compression == "gzip":
            self._stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        elif compression == "zstd":
            self._stream = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()

    def compress(self, data: bytes) -> bytes:
        """Take bytes and return those that are ready, maybe none."""
        return data if self._stream is None else bytes(self._stream.compress(data))

    def flush(self) -> bytes:
        """End the stream and return the rest."""
        return b"" if self._stream is None else bytes(self._stream.flush())
