"""Tars: what tarfile and GNU tar write is what is read, however it arrives; no bytes break the reader."""

from __future__ import annotations

import contextlib
import io
import tarfile
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerfs.errors import FormatError
from layerfs.formats.erofs.writer import Device, write_tree
from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.plain import PlainHeaders
from layerfs.formats.tar.reader import TarReader
from layerfs.formats.tree import LayerTree
from tests.unit.formats.raw_tar import END, entry, header, pad, pax

KINDS = {
    b"0": tarfile.REGTYPE,
    b"1": tarfile.LNKTYPE,
    b"2": tarfile.SYMTYPE,
    b"3": tarfile.CHRTYPE,
    b"4": tarfile.BLKTYPE,
    b"5": tarfile.DIRTYPE,
    b"6": tarfile.FIFOTYPE,
}

#: Any bytes but NUL and slashes; "." and ".." are for other tests.
components = st.binary(min_size=1, max_size=255).map(
    lambda raw: raw.replace(b"\0", b"x").replace(b"/", b"y").replace(b".", b"z")
)
paths = st.lists(components, min_size=1, max_size=4).map(b"/".join)
xattr_names = st.text("abcXYZ0129._-", min_size=1, max_size=20).map("user.".__add__)


@dataclass
class Wanted:
    """One member as it should come back."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    time: int  # nanoseconds
    link: bytes
    device: tuple[int, int]
    data: bytes
    xattrs: dict[str, bytes]


members = st.builds(
    Wanted,
    name=paths,
    kind=st.sampled_from(sorted(KINDS)),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    time=st.integers(-(2**40), 2**62),
    link=paths,
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    data=st.binary(max_size=1500),
    xattrs=st.dictionaries(xattr_names, st.binary(max_size=40), max_size=3),
)
steps = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def write(wanted: list[Wanted], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for member in wanted:
            info = tarfile.TarInfo(member.name.decode(errors="surrogateescape"))
            info.type = KINDS[member.kind]
            info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
            info.devmajor, info.devminor = member.device
            info.mtime = member.time // 10**9
            if member.kind in b"12":
                info.linkname = member.link.decode(errors="surrogateescape")
            if form == tarfile.PAX_FORMAT:
                headers: dict[str, str] = {}
                info.pax_headers = headers
                whole, rest = divmod(abs(member.time), 10**9)
                headers["mtime"] = f"{'-' if member.time < 0 else ''}{whole}.{rest:09}"
                # tarfile writes the values as UTF-8, with surrogates for what is none.
                for name, value in member.xattrs.items():
                    headers[f"SCHILY.xattr.{name}"] = value.decode(errors="surrogateescape")
            if member.kind == b"0":
                info.size = len(member.data)
                archive.addfile(info, io.BytesIO(member.data))
            else:
                archive.addfile(info)
    return buffer.getvalue()


def read(archive: bytes, blocks: list[int]) -> list[Member]:
    reader = TarReader()
    found: list[Member] = []
    position = turn = 0
    while position < len(archive):
        size = blocks[turn % len(blocks)] * BLOCK
        found += reader.feed(archive[position : position + size])
        position += size
        turn += 1
    reader.close()
    return found


def compare(archive: bytes, wanted: list[Wanted], found: list[Member], *, precise: bool) -> None:
    assert len(found) == len(wanted)
    for want, got in zip(wanted, found, strict=True):
        assert got.name.rstrip(b"/") == want.name
        assert (got.kind, got.mode, got.uid, got.gid) == (want.kind, want.mode, want.uid, want.gid)
        time = want.time if precise else want.time // 10**9 * 10**9
        assert got.mtime * 10**9 + got.mtime_ns == time
        assert got.link == (want.link if want.kind in b"12" else b"")
        if want.kind in b"34":
            assert (got.major, got.minor) == want.device
        data = want.data if want.kind == b"0" else b""
        assert (got.size, got.data_size) == (len(data), len(data))
        assert archive[got.data_offset : got.data_offset + got.data_size] == data
        if precise:
            assert (got.xattrs or {}) == {name.encode(): value for name, value in want.xattrs.items()}


@given(st.lists(members, max_size=6), steps)
def test_gnu_archives_are_read_as_written(wanted: list[Wanted], blocks: list[int]) -> None:
    archive = write(wanted, tarfile.GNU_FORMAT)
    compare(archive, wanted, read(archive, blocks), precise=False)


@given(st.lists(members, max_size=6), steps)
def test_pax_archives_are_read_as_written(wanted: list[Wanted], blocks: list[int]) -> None:
    archive = write(wanted, tarfile.PAX_FORMAT)
    compare(archive, wanted, read(archive, blocks), precise=True)


short = st.text("abc/", min_size=1, max_size=240).map(lambda text: text.strip("/").replace("//", "/x") or "a")


@given(st.lists(st.tuples(short, st.integers(0, 2**21 - 1), st.binary(max_size=600)), max_size=5), steps)
def test_ustar_archives_are_read_as_written(wanted: list[tuple[str, int, bytes]], blocks: list[int]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        kept = []
        for name, uid, data in wanted:
            info = tarfile.TarInfo(name)
            info.uid, info.size = uid, len(data)
            with contextlib.suppress(ValueError):  # a name that cannot be divided
                archive.addfile(info, io.BytesIO(data))
                kept.append((name.encode(), uid, data))
    raw = buffer.getvalue()
    found = [(m.name, m.uid, raw[m.data_offset : m.data_offset + m.size]) for m in read(raw, blocks)]
    assert found == kept


def take(archive: bytes) -> None:
    """Read an archive as a layer; only FormatError may come of it."""
    tree = LayerTree("layer")
    reader = TarReader()
    try:
        for start in range(0, len(archive), 3 * BLOCK):
            for member in reader.feed(archive[start : start + 3 * BLOCK]):
                tree.add(member)
        reader.close()
    except FormatError:
        return
    tree.finish()


SAMPLES = [
    write(
        [
            Wanted(b"a" * 120, b"0", 0o644, 1, 2, 10**18, b"", (0, 0), b"d" * 700, {"user.x": b"1"}),
            Wanted(b"l", b"2", 0o777, 1, 2, -5, b"t" * 120, (0, 0), b"", {}),
            Wanted(b"n", b"3", 0o600, 2**32 - 2, 2, 0, b"", (4095, 77), b"", {}),
        ],
        form,
    )
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
] + [
    pax(
        {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.realsize": b"9000",
            b"GNU.sparse.name": b"s",
        }
    )
    + entry(b"x", pad(b"2\n0\n600\n8000\n5\n") + b"s" * 605)
    + END,
    pax({b"GNU.sparse.size": b"9000", b"GNU.sparse.map": b"0,600,8000,5"}) + entry(b"x", b"s" * 605) + END,
    header(b"d/", b"5") + entry(b"d/.wh.x") + entry(b"d/.wh..wh..opq") + header(b"d/h", b"1", link=b"d/f") + END,
]


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    take(raw)
    take(raw.ljust(512, b"\0"))


def with_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 40),
)
@example(SAMPLES[0], [(124, b"\xff" * 12)], True, 40)
@example(SAMPLES[2], [(512 + 5, b"9" * 12)], True, 40)
def test_any_damage_is_read_or_refused(
    archive: bytes, damages: list[tuple[int, bytes]], mend: bool, blocks: int
) -> None:
    """Damage with the checksums put right again reaches the code behind them."""
    raw = bytearray(archive)
    for position, damage in damages:
        at = position % len(raw)
        raw[at : at + len(damage)] = damage[: len(raw) - at]
    if mend:
        for start in range(0, len(raw) - BLOCK + 1, BLOCK):
            block = bytes(archive[start : start + BLOCK])
            if block == with_checksum(block):
                raw[start : start + BLOCK] = with_checksum(bytes(raw[start : start + BLOCK]))
    take(bytes(raw))
    take(bytes(raw[: blocks * BLOCK]))


NAMES = [b"a", b"a/b", b"a/b/c", b".", b"a/.", b"a/", b"b", b"b/c", b"../x", b"/a", b"a/.wh.b", b"b/.wh..wh..opq"]


@given(
    st.lists(
        st.builds(
            header,
            st.sampled_from(NAMES),
            st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"\0"]),
            link=st.sampled_from([b"a", b"b", b"../a", b"/", b"..", b"a/b/c", b"/b", b"."]),
            major=st.integers(0, 1),
        ),
        max_size=12,
    )
)
def test_any_order_of_names_is_taken_or_refused(blocks: list[bytes]) -> None:
    take(b"".join(blocks) + END)


def outcome(blocks: list[bytes], *, quick: bool) -> object:
    """Return the members of some headers, or the words of the error, by the quick way where it applies or without."""
    with pytest.MonkeyPatch.context() as patch:
        if not quick:
            patch.setattr(PlainHeaders, "parse", lambda *_: None)
        reader = TarReader()
        try:
            return [member for block in blocks for member in reader.feed(block)]
        except FormatError as error:
            return type(error), str(error), error.where


numbers = st.one_of(
    st.integers(0, 0o7777777),
    st.sampled_from([b"", b" 17 ", b"0000017", b"8", b"-1", b"\x80\0\0\0\0\0\1\0", b"\xff" * 8]),
)
headers = st.builds(
    header,
    name=st.sampled_from([b"f", b"d/", b"n" * 100, b"a\0b", b""]),
    kind=st.sampled_from([b"0", b"1", b"2", b"5", b"\0", b"7", b"3", b"6", b"9"]),
    size=st.one_of(st.just(0), st.sampled_from([b"00000000000", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"7" * 12])),
    mode=numbers,
    uid=numbers,
    gid=numbers,
    mtime=numbers,
    link=st.sampled_from([b"", b"t", b"t\0u"]),
    magic=st.sampled_from([b"ustar\00000", b"ustar  \0", b""]),
    prefix=st.sampled_from([b"", b"p", b"p\0q"]),
    checksum=st.sampled_from([None, None, None, b"000000\0 ", b"junk"]),
)


@given(st.lists(headers, min_size=1, max_size=5))
def test_quick_way_reads_headers_as_the_whole_one(blocks: list[bytes]) -> None:
    """Also a second time, when their fields are known."""
    assert outcome(blocks * 2, quick=True) == outcome(blocks * 2, quick=False)


def layer_bytes(blocks: list[bytes], *, remember: bool) -> object:
    """Return the image of the tree of these members, or the error; with or without remembering directories."""
    with pytest.MonkeyPatch.context() as patch:
        if not remember:
            patch.setattr(LayerTree, "_remember", lambda *_: None)
        tree, reader = LayerTree("layer"), TarReader()
        try:
            for member in reader.feed(b"".join(blocks) + END):
                tree.add(member)
            return write_tree(tree.finish(), [Device("layer", b"", 1 << 20)], bytes(16))
        except FormatError as error:
            return type(error), str(error)


@given(
    st.lists(
        st.builds(
            header,
            st.sampled_from(
                [*NAMES, b"a/b/", b"./a/", b"a//b", b"a/b/c/", b"a/.wh..wh.x/y", b"s", b"s/b", b"s/b/", b"s/c/x"]
            ),
            st.sampled_from([b"0", b"2", b"5", b"5"]),
            link=st.sampled_from([b"a", b"b", b"../a", b"a/b", b"/b"]),
            mode=st.integers(0, 0o777),
        ),
        max_size=14,
    )
)
def test_remembered_directories_are_those_that_paths_lead_to(blocks: list[bytes]) -> None:
    assert layer_bytes(blocks, remember=True) == layer_bytes(blocks, remember=False)
