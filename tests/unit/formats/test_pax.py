"""PAX records and times, strictly by their grammar."""

from __future__ import annotations

import pytest

from layerfs.errors import FormatError
from layerfs.formats.tar.pax import parse_records, parse_time
from tests.unit.formats.raw_tar import record


@pytest.mark.parametrize(
    ("payload", "records"),
    [
        (b"", []),
        (b"6 a=b\n", [(b"a", b"b")]),
        (b"5 a=\n", [(b"a", b"")]),
        (b"06 a=b\n"[1:] + b"9 a=b=c\n\n", [(b"a", b"b"), (b"a", b"b=c\n")]),
        (b"6 a=b\n" + bytes(10), [(b"a", b"b")]),
        (record(b"path", b"x" * 84), [(b"path", b"x" * 84)]),  # the length gains a digit by itself
        (record(b"path", b"\xff\0\n"), [(b"path", b"\xff\0\n")]),
    ],
)
def test_parse_records(payload: bytes, records: list[tuple[bytes, bytes]]) -> None:
    assert parse_records(payload) == records


@pytest.mark.parametrize(
    "payload",
    [
        b"x a=b\n",
        b" 6 a=b\n",
        b"-6 a=b\n",
        b"+6 a=b\n",
        b"6\ta=b\n",
        b"5 a=b\n",  # too short by one
        b"7 a=b\n",  # too long by one
        b"7 a=b\n\0",
        b"6 a=bx",
        b"4 ab\n",
        b"5 ab\n",
        b"5 =b\n",
        b"2 ",
        b"3 \n",
        b"0 \n",
        b"123456789 a=b\n",
        b"6 a=b\n6 a=b",
        b"6 a=b\ngarbage",
        "٦ a=b\n".encode(),  # digits of another script
    ],
)
def test_what_breaks_the_grammar_is_refused(payload: bytes) -> None:
    with pytest.raises(FormatError):
        parse_records(payload)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"0", (0, 0)),
        (b"1700000000.123456789", (1_700_000_000, 123_456_789)),
        (b"1700000000.1234567891", (1_700_000_000, 123_456_789)),
        (b"1.5", (1, 500_000_000)),
        (b"1.", (1, 0)),
        (b"-1", (-1, 0)),
        (b"-1.25", (-2, 750_000_000)),
        (b"-0.5", (-1, 500_000_000)),
        (b"-0", (0, 0)),
    ],
)
def test_parse_time(text: bytes, time: tuple[int, int]) -> None:
    assert parse_time(text, "mtime") == time


@pytest.mark.parametrize(
    "text", [b"", b".5", b"--1", b"1e9", b"1.2.3", b" 1", b"1 ", b"nan", b"9" * 21, b"1,5", b"0x1"]
)
def test_what_is_no_time_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError, match="mtime"):
        parse_time(text, "mtime")
