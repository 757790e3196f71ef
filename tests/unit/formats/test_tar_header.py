"""Numbers and checksums of header blocks."""

from __future__ import annotations

import struct

import pytest

from layerfs.errors import FormatError
from layerfs.formats.tar.header import BLOCK, HEADER, checksum_matches, parse_number
from tests.unit.formats.raw_tar import header


def test_the_header_fills_a_block() -> None:
    assert HEADER.size == BLOCK == 512


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"0000644 ", 0o644),
        (b"000644 \0", 0o644),
        (b"   644 \0", 0o644),
        (b"   644\0 ", 0o644),
        (b"77777777", 0o77777777),
        (b"\0" * 8, 0),
        (b" " * 8, 0),
        (b"\0000644\0\0", 0o644),  # some writers lose the first digit
        (b"12\0 junk", 0o12),  # what follows the end is no part of the number
        (b"\x80" + b"\0" * 6 + b"\x05", 5),
        (b"\x80" + b"\0" * 3 + b"\xff\xff\xff\xfe", 2**32 - 2),
        (b"\xff" * 8, -1),
        (b"\xff" * 11 + b"\xfe", -2),
        (b"\x80\0\0\0" + struct.pack(">Q", 1 << 40), 1 << 40),
    ],
)
def test_parse_number(field: bytes, value: int) -> None:
    assert parse_number(field) == value


@pytest.mark.parametrize(
    "field", [b"0o644\0\0\0", b"-1\0", b"+1\0", b"1_0\0", b"8\0", b"6 4\0", b"0x1f\0", b"\x81" * 8]
)
def test_what_is_no_number_is_refused(field: bytes) -> None:
    with pytest.raises(FormatError):
        parse_number(field)


def signed_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:]
    return b"%06o\0 " % sum(struct.unpack("512b", blank))


@pytest.mark.parametrize(
    ("block", "matches"),
    [
        (header(b"f"), True),
        (header(b"\xff" * 100, link=b"\xff" * 100, prefix=b"\xff" * 155), True),
        (header(b"\xc3\xa9", checksum=signed_checksum(header(b"\xc3\xa9"))), True),  # old tars summed signed bytes
        (header(b"f", checksum=b"%07o\0" % (sum(header(b"f", checksum=b" " * 8)))), True),
        (header(b"f", checksum=b"0000000\0"), False),
        (header(b"f", checksum=b"junk\0\0\0\0"), False),
        (header(b"f", checksum=b"%06o\0 " % (sum(header(b"f", checksum=b" " * 8)) + 1)), False),
        (bytes(BLOCK), False),
        (b"\xff" * BLOCK, False),
    ],
)
def test_checksum(block: bytes, matches: bool) -> None:
    assert checksum_matches(block) is matches
