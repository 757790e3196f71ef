"""The exact form of tar headers: ustar where it suffices, else PAX."""

from __future__ import annotations

import pytest

from layerfs.errors import FormatError
from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.formats.tar.writer import encode_member


def _member(name: bytes = b"etc/passwd", **changes: object) -> Member:
    made = Member(name, b"0", 0o644, 0, 0, 1_600_000_000, 0, 0, b"", 0, 0, None, 0, 0, 0, None)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def _payload(raw: bytes) -> bytes:
    return raw[BLOCK : BLOCK + int(raw[124:135], 8)]


def test_a_plain_header_is_ustar() -> None:
    raw = encode_member(_member())
    assert len(raw) == BLOCK
    assert raw[257:265] == b"ustar\x0000"
    assert raw[265:329] == bytes(64), "no user names"
    assert raw[100:108] == b"0000644\0"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mtime_ns": 500_000_000}, b"22 mtime=1600000000.5\n"),
        ({"mtime": -2, "mtime_ns": 750_000_000}, b"15 mtime=-1.25\n"),
        ({"uid": 2_097_152}, b"15 uid=2097152\n"),
        ({"size": 8**11}, b"19 size=8589934592\n"),
        ({"xattrs": {b"user.b": b"\0\n=", b"user.a": b""}}, b"24 SCHILY.xattr.user.a=\n27 SCHILY.xattr.user.b=\0\n=\n"),
        ({"xattrs": {b"user.a=b": b"?"}}, b"34 LIBARCHIVE.xattr.user.a%3Db=Pw\n"),
        ({"link": b"x" * 101, "kind": b"2"}, b"115 linkpath=" + b"x" * 101 + b"\n"),
        ({"name": b"n" * 101}, b"111 path=" + b"n" * 101 + b"\n"),
    ],
)
def test_what_ustar_cannot_say_is_a_pax_record(changes: dict[str, object], expected: bytes) -> None:
    raw = encode_member(_member(**changes))  # type: ignore[arg-type]
    assert raw[156:157] == b"x"
    assert _payload(raw) == expected


def test_a_record_counts_the_digits_of_its_own_length() -> None:
    for size in range(60, 1100):
        raw = encode_member(_member(xattrs={b"user.x": b"v" * size}))
        (found,) = TarReader().feed(raw)
        assert found.xattrs == {b"user.x": b"v" * size}


@pytest.mark.parametrize("directories", [1, 10, 14, 15])
def test_long_names_are_split_where_that_is_enough(directories: int) -> None:
    name = b"directory1" * directories + b"/" + b"f" * 100
    raw = encode_member(_member(name))
    assert (len(raw) == BLOCK) == (10 * directories <= 155)
    (found,) = TarReader().feed(raw)
    assert found.name == name


@pytest.mark.parametrize("changes", [{"name": b""}, {"name": b"a\0b"}, {"link": b"a\0"}])
def test_what_no_archive_can_hold_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        encode_member(_member(**changes))  # type: ignore[arg-type]
