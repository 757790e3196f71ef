"""Decompression of blobs: gzip, zstd or none, found by their first bytes, in pieces of bounded size.

Media types lie (docker calls zstd layers gzip, archives carry plain tars under any name), so only magic numbers count.
Both decoders release the GIL and never produce more than one piece at a time: a bomb costs time, not memory.

Sources: RFC 1952 (gzip, multi-member), RFC 8878 (zstd, skippable and concatenated frames).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol, cast

from layerfs.errors import DamagedData, UnsupportedFormat
from layerfs.formats.tar.header import BLOCK, checksum_matches

__all__ = ["MAX_WINDOW", "PIECE", "decompress", "detect", "rejoined"]

#: Bytes per decompressed piece: each one handed to another thread costs that thread's wait for the interpreter. With
#: 256 KiB, which stays in a CPU's cache, a load of 1 GB took 3.36 s instead of 3.23 (medians of 4, interleaved).
PIECE = 1 << 20

#: Bytes of compressed data taken at a time.
_INPUT = 1 << 19

#: The largest zstd window accepted: 128 MiB, the ``--long=27`` default of the zstd program's decoder.
MAX_WINDOW = 1 << 27

#: The magic number and the one compression method there is.
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: What the end of a zstd stream is known by.
_END = b"layerfs: the end"
_OTHER = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x04\x22\x4d\x18": "lz4", b"\x5d\x00\x00": "lzma"}

try:
    from isal import igzip_lib
except ImportError:  # there are wheels for x86-64 and arm64; zlib takes 2.5 times as long
    _HAS_ISAL = False
    _DAMAGE: tuple[type[Exception], ...] = (zlib.error,)
else:
    _HAS_ISAL = True
    # isal's stub declares its exception class as if it were an instance.
    _DAMAGE = (zlib.error, cast("type[Exception]", igzip_lib.IsalError))


def detect(prefix: bytes) -> str:
    """Return ``gzip``, ``zstd`` or ``none`` for a stream that begins with these bytes.

    Args:
        prefix: at least 512 bytes, or the whole stream when it is shorter. The first bytes of a plain tar are a file's
            name, which may look like anything; its checksum tells.

    Raises:
        UnsupportedFormat: the stream is compressed in a way that OCI layers are not (bzip2, xz, lz4).
    """
    if prefix.startswith(_GZIP):
        return "gzip"
    if prefix.startswith(_ZSTD) or _is_skippable_frame(prefix):
        return "zstd"
    for magic, name in _OTHER.items():
        if prefix.startswith(magic) and not (len(prefix) >= BLOCK and checksum_matches(prefix[:BLOCK])):
            raise UnsupportedFormat(
                f"data is compressed with {name}", hint="Recompress it with gzip or zstd, or decompress it first."
            )
    return "none"


def decompress(read: Callable[[int], bytes], codec: str) -> Iterator[bytes]:
    """Yield the decompressed stream in pieces of at most :data:`PIECE` bytes, none empty.

    Args:
        read: returns up to that many bytes of the compressed stream, and nothing at its end.
        codec: what :func:`detect` returned.

    Raises:
        DamagedData: the compressed data is damaged, or ends too soon.
    """
    if codec == "gzip":
        return _gunzip(read)
    if codec == "zstd":
        return _unzstd(read)
    return iter(lambda: read(PIECE), b"")


def rejoined(head: bytes, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a read function that gives first what was read already, to find the compression out."""
    rest = [head] if head else []

    def joined(size: int) -> bytes:
        if rest:
            data = rest.pop()
            if len(data) > size:
                rest.append(data[size:])
            return data[:size]
        return read(size)

    return joined


def _is_skippable_frame(prefix: bytes) -> bool:
    return len(prefix) >= 4 and prefix[1:4] == b"\x2a\x4d\x18" and prefix[0] & 0xF0 == 0x50


class _GzipDecoder(Protocol):
    """A decoder of one member, as :mod:`bz2` has them."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class ZlibDecoder:
    """zlib's decoder of one gzip member, in the form of isal's.

    Attributes:
        needs_input: whether nothing comes out any more without new data.
    """

    def __init__(self) -> None:
        """Begin a member."""
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        """Whether the member has ended, and its checksum was right."""
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        """What came behind the end of the member."""
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take data and return up to so many bytes; the rest stays until the next call."""
        found = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        # With all data taken, more may still be waiting inside.
        self.needs_input = len(found) < max_length and not self._decoder.unconsumed_tail
        return found


def _gzip_decoder() -> _GzipDecoder:
    if _HAS_ISAL:
        return cast("_GzipDecoder", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))
    return ZlibDecoder()


def _gunzip(read: Callable[[int], bytes]) -> Iterator[bytes]:
    decoder = _gzip_decoder()
    data = read(_INPUT)
    # What the input so far gave short of a whole piece: whole ones need no copy further on. Members may be as small as
    # a byte, so parts are joined once, not each to the one before.
    parts: list[bytes] = []
    missing = PIECE
    try:
        while True:
            while not decoder.eof:
                part = decoder.decompress(data, missing)
                data = b""
                if part:
                    parts.append(part)
                    missing -= len(part)
                if not missing:
                    yield b"".join(parts)
                    parts.clear()
                    missing = PIECE
                if decoder.needs_input and not decoder.eof:
                    data = read(_INPUT)
                    if not data:
                        raise DamagedData("gzip data ends too soon")
            # Members may follow one another; zeros after the last are padding (gzip -t accepts them).
            data = decoder.unused_data or read(_INPUT)
            while data and not data.strip(b"\0"):
                data = read(_INPUT)
            if not data:
                if parts:
                    yield b"".join(parts)
                return
            data = data.lstrip(b"\0")
            while len(data) < len(_GZIP) and (more := read(_INPUT)):
                data += more
            if not data.startswith(_GZIP):
                raise DamagedData("gzip data is followed by something else")
            decoder = _gzip_decoder()
    except _DAMAGE as error:
        raise DamagedData(f"gzip data is damaged: {error}") from error


class _Source:
    """The reader object that zstandard wants, around a read function, with something more at the end."""

    def __init__(self, read: Callable[[int], bytes], last: bytes) -> None:
        self._read = read
        self._last = last

    def read(self, size: int = -1) -> bytes:
        data = self._read(size if size > 0 else PIECE)
        if not data:
            # In pieces: the decoder takes a whole frame that comes alone for the one whose header it is waiting for.
            data, self._last = self._last[:8], self._last[8:]
        return data


def _unzstd(read: Callable[[int], bytes]) -> Iterator[bytes]:
    # Here, because most layers are gzip and it takes as long to import as a load with nothing new.
    import zstandard  # noqa: PLC0415 - see above

    # The library does not tell a stream that ends inside a frame. So a frame of ours follows: its content comes out
    # last if a new frame could begin there. Its checksum is behind that, lest a raw block take it in and look the same.
    last = zstandard.ZstdCompressor(write_checksum=True).compress(_END)
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    reader = decoder.stream_reader(cast("IO[bytes]", _Source(read, last)), read_size=_INPUT, read_across_frames=True)
    held = b""
    try:
        while len(piece := reader.read(PIECE)) == PIECE:
            if held:
                yield held
            held = piece
    except zstandard.ZstdError as error:
        raise DamagedData(f"zstd data is damaged or ends too soon: {error}") from error
    if len(piece) < len(_END):
        held, piece = b"", held + piece
    if not piece.endswith(_END):
        raise DamagedData("zstd data ends too soon")
    for rest in (held, piece[: -len(_END)]):
        if rest:
            yield rest
