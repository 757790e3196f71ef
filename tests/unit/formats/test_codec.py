"""Compressed streams: found by magic, read in bounded pieces, refused when damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard

from layerfs.errors import FormatError, UnsupportedFormat
from layerfs.formats import codec as codec_module
from layerfs.formats.codec import MAX_WINDOW, PIECE, decompress, detect
from tests.image_builder import noise
from tests.unit.formats.raw_tar import END, entry

SKIPPABLE = b"\x5f\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"
TEXT = noise(1000) + bytes(PIECE) + b"end"


@pytest.fixture(autouse=True, params=["isal", "zlib"])
def _gzip_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both that there are."""
    if request.param == "isal" and not codec_module._HAS_ISAL:
        pytest.skip("isal is not installed: this processor has no wheel of it")
    monkeypatch.setattr(codec_module, "_HAS_ISAL", request.param == "isal")


def zstd(data: bytes) -> bytes:
    return zstandard.compress(data)


def source(data: bytes, step: int | None = None) -> Callable[[int], bytes]:
    file = io.BytesIO(data)
    return lambda size: file.read(size if step is None else min(step, size))


def expand(data: bytes, step: int | None = None) -> bytes:
    pieces = list(decompress(source(data, step), detect(data)))
    assert all(0 < len(piece) <= PIECE for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize(
    ("data", "codec"),
    [
        (gzip.compress(b"x"), "gzip"),
        (zstd(b"x"), "zstd"),
        (SKIPPABLE + zstd(b"x"), "zstd"),
        (b"\x50\x2a\x4d\x18", "zstd"),
        (b"", "none"),
        (b"\x1f", "none"),
        (b"\x1f\x8b\x07", "none"),  # gzip has one method only
        (entry(b"etc"), "none"),
        (entry(b"BZh"), "none"),  # names that look like other formats, in tars whose checksum says otherwise
        (entry(b"]"), "none"),
        (entry(b"\xfd7zXZ\0"), "none"),
    ],
)
def test_detect(data: bytes, codec: str) -> None:
    assert detect(data) == codec


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (lzma.compress(b"x", lzma.FORMAT_ALONE), "lzma"),
        (b"\x04\x22\x4d\x18" + bytes(600), "lz4"),
        (b"BZh9" + bytes(600), "bzip2"),
    ],
)
def test_other_compressions_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=name):
        detect(data)


@pytest.mark.parametrize("step", [None, 1000, 77])
@pytest.mark.parametrize(
    ("data", "content"),
    [
        (gzip.compress(TEXT), TEXT),
        (gzip.compress(b""), b""),
        (gzip.compress(b"a") + gzip.compress(b"") + gzip.compress(b"b"), b"ab"),
        (gzip.compress(b"a") + bytes(1000), b"a"),
        (gzip.compress(b"a") + bytes(300) + gzip.compress(b"b"), b"ab"),
        (zstd(TEXT), TEXT),
        (zstd(b""), b""),
        (SKIPPABLE + zstd(b"a") + SKIPPABLE + zstd(b"") + zstd(b"b") + SKIPPABLE, b"ab"),
        (TEXT, TEXT),
        (b"", b""),
    ],
)
def test_decompress(data: bytes, content: bytes, step: int | None) -> None:
    assert expand(data, step) == content


@pytest.mark.parametrize("step", [None, 1])
def test_small_steps_split_magic_numbers(step: int | None) -> None:
    assert expand(gzip.compress(b"a") + gzip.compress(b"b"), step) == b"ab"
    assert expand(SKIPPABLE + zstd(b"a") + zstd(b"b"), step) == b"ab"


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flipped(gzip.compress(TEXT), -6 % len(gzip.compress(TEXT))), "damaged"),
        (flipped(gzip.compress(TEXT), -2 % len(gzip.compress(TEXT))), "damaged"),
        (flipped(gzip.compress(b"abc" * 99), 15), "damaged"),
        (gzip.compress(TEXT)[:-1], "too soon"),
        (gzip.compress(TEXT)[:500], "too soon"),
        (gzip.compress(b"a") + gzip.compress(b"b")[:12], "too soon"),
        (gzip.compress(b"a") + b"PK", "followed"),
        (gzip.compress(b"a") + b"\0\0\x1f", "followed"),
        (flipped(zstd(noise(999)), 5), "damaged"),
        (zstd(b"a") + b"garbage!", "damaged"),
    ],
)
def test_damage_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        expand(data)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("content", [bytes(300), noise(300), b"a word, and " * 30], ids=["RLE", "raw", "compressed"])
def test_a_zstd_stream_may_end_between_frames_alone(content: bytes, checksum: bool) -> None:
    compressor = zstandard.ZstdCompressor(write_checksum=checksum)
    frames = [compressor.compress(content), SKIPPABLE, compressor.compress(content[:7])]
    ends = {len(b"".join(frames[:count])): content * (count > 0) + content[:7] * (count > 2) for count in range(4)}
    stream = b"".join(frames)
    for cut in range(1, len(stream) + 1):
        pieces = decompress(source(stream[:cut]), "zstd")
        if cut in ends:
            assert b"".join(pieces) == ends[cut]
        else:
            with pytest.raises(FormatError, match="too soon"):
                list(pieces)


@pytest.mark.parametrize("length", [PIECE - 16, PIECE - 15, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 8, 2 * PIECE])
def test_a_zstd_stream_of_whole_pieces(length: int) -> None:
    content = noise(length)
    assert expand(zstd(content)) == content


def test_a_huge_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(b"x") + compressor.flush()
    assert MAX_WINDOW < 1 << 28
    with pytest.raises(FormatError, match="memory"):
        expand(data)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_bomb_costs_no_memory(compress: Callable[[bytes], bytes]) -> None:
    data = compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in decompress(source(data), detect(data)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 8 * PIECE


def test_many_tiny_members_are_joined_once() -> None:
    """Copying all that came before for every member would take minutes."""
    assert expand(gzip.compress(b"x") * 60_000) == b"x" * 60_000


def test_a_compressed_tar_is_found_inside() -> None:
    archive = entry(b"f", b"data") + END
    assert expand(gzip.compress(archive)) == expand(zstd(archive)) == archive
