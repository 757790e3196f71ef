"""Compression of layers on their way out: gzip, zstd or none, the same bytes every time.

Nothing of the machine or the time goes into them. They depend on the library and its version all the same, so the
digest of a compressed layer is no name for its content; the diffID is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from layerfs.errors import InvalidReference
from layerfs.formats.media_type import Compression

__all__ = ["COMPRESSIONS", "LEVELS", "Compressor", "check_level", "compress"]

#: The levels that each compression has.
LEVELS = {"none": range(0), "gzip": range(1, 10), "zstd": range(1, 23)}

#: What a layer may be compressed with.
COMPRESSIONS = tuple(LEVELS)

#: What other builders use.
_GZIP_LEVEL = 6
#: isal's own best: eleven times as fast as zlib's level 6, and a tenth larger.
_ISAL_LEVEL = 2
_ZSTD_LEVEL = 3

#: zlib's words for the largest window and a gzip header, with time 0.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class _Stream(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Compressor:
    """Compresses one stream."""

    def __init__(self, compression: str, level: int | None = None, *, fast: bool = False) -> None:
        """Start a stream.

        Args:
            compression: one of :data:`COMPRESSIONS`; ``none`` passes everything through.
            level: of the compression; None takes 6 for gzip and 3 for zstd.
            fast: without a level, compress gzip with isal: for transfers, where time counts more than size.

        Raises:
            InvalidReference: there is no such compression, or no such level of it.
        """
        check_level(compression, level)
        self._stream = _stream(compression, level, fast=fast)

    def compress(self, data: bytes) -> bytes:
        """Take bytes and return those that are ready, maybe none."""
        return data if self._stream is None else self._stream.compress(data)

    def flush(self) -> bytes:
        """End the stream and return the rest."""
        return b"" if self._stream is None else self._stream.flush()


def check_level(compression: str | None, level: int | None) -> None:
    """Refuse a compression that there is not, and a level that it does not have; None has none.

    Raises:
        InvalidReference: it is none, or none of its levels.
    """
    if compression is None:
        if level is not None:
            raise InvalidReference(f"level {level} of no compression", hint="Name the compression too.")
        return
    if compression not in COMPRESSIONS:
        raise InvalidReference(f"no such compression: {compression}", hint=f"Use one of {', '.join(COMPRESSIONS)}.")
    levels = LEVELS[cast("Compression", compression)]
    if level is not None and level not in levels:
        known = f"{levels[0]} to {levels[-1]}" if levels else "no levels"
        raise InvalidReference(f"{compression} has {known}, not {level}")


def compress(
    pieces: Iterable[bytes], compression: Compression, level: int | None = None, *, fast: bool = True
) -> Iterator[bytes]:
    """Yield a stream compressed, for a transfer; arguments and errors are those of :class:`Compressor`."""
    stream = Compressor(compression, level, fast=fast)
    for piece in pieces:
        if packed := stream.compress(piece):
            yield packed
    if packed := stream.flush():
        yield packed


def _stream(compression: str, level: int | None, *, fast: bool) -> _Stream | None:
    # Each library is imported where it is used: few commands compress, and all need a quick start.
    if compression == "none":
        return None
    if compression == "zstd":
        import zstandard  # noqa: PLC0415 - see above

        return zstandard.ZstdCompressor(level=level or _ZSTD_LEVEL, write_checksum=True).compressobj()
    if fast and level is None:
        try:
            from isal import isal_zlib  # noqa: PLC0415 - see above
        except ImportError:
            level = 1
        else:
            return cast("_Stream", isal_zlib.compressobj(_ISAL_LEVEL, wbits=_GZIP_WINDOW))
    return zlib.compressobj(level or _GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
