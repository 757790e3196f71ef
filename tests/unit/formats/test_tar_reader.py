"""What single archives say, member by member, and what is refused in them."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from layerfs.errors import FormatError, LimitExceeded, UnsupportedFormat
from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import MAX_EXTENSION, TarReader
from tests.unit.formats.raw_tar import END, entry, header, pad, pax, read


def only(archive: bytes) -> Member:
    (member,) = read(archive + END)
    return member


def test_a_plain_file() -> None:
    member = only(header(b"a/b", size=3, mode=0o104755, uid=1, gid=2, mtime=3) + pad(b"abc"))
    assert member == Member(
        b"a/b", b"0", 0o4755, 1, 2, 3, 0, 3, b"", 0, 0, None, header_offset=0, data_offset=512, data_size=3, sparse=None
    )


@pytest.mark.parametrize(
    ("archive", "field", "value"),
    [
        # names
        (header(b"n" * 100), "name", b"n" * 100),
        (header(b"f", prefix=b"a/b"), "name", b"a/b/f"),
        (header(b"f", prefix=b"p" * 155), "name", b"p" * 155 + b"/f"),
        (header(b"f", prefix=b"p", magic=b"ustar\0\0\0"), "name", b"p/f"),
        (header(b"f", prefix=b"p" * 131 + b"%011o\0" % 9 * 2, rest=bytes(8) + b"tar\0"), "name", b"p" * 131 + b"/f"),
        (header(b"f", prefix=b"p" + bytes(130) + b"%011o\0" % 9 * 2, rest=bytes(8) + b"tar\0"), "name", b"p/f"),
        (header(b"f", prefix=b"%011o\0" % 9 + b"%011o\0" % 9, magic=b"ustar  \0"), "name", b"f"),  # GNU has times there
        (header(b"f", prefix=b"\0" * 12 + b"%011o\0" % 9, magic=b"ustar  \0"), "name", b"f"),
        (header(b"f", prefix=b"\x80" + bytes(10) + b"\x09", magic=b"ustar  \0"), "name", b"f"),
        (header(b"f", prefix=b"safe", magic=b"ustar  \0"), "name", b"safe/f"),  # and Go, once, the prefix of POSIX
        (header(b"f", prefix=b"s\xe9", magic=b"ustar  \0"), "name", b"f"),
        (header(b"f", prefix=b"p", magic=b""), "name", b"f"),
        (header(b"\xff\xfe\n"), "name", b"\xff\xfe\n"),
        (header(b"@Long", b"L", 6) + pad(b"a/long") + header(b"short"), "name", b"a/long"),
        (header(b"@Long", b"L", 5) + pad(b"long\0") + header(b"short"), "name", b"long"),
        (header(b"@Long", b"L", 600) + pad(b"l" * 600) + header(b"short"), "name", b"l" * 600),
        (pax({b"path": b"\xffname"}) + header(b"short"), "name", b"\xffname"),
        (pax({b"path": b""}) + header(b"short"), "name", b"short"),
        (pax([(b"path", b"a"), (b"path", b"b")]) + header(b"short"), "name", b"b"),
        (pax({b"path": b"a"}) + pax({b"mtime": b"1"}) + header(b"short"), "name", b"short"),  # the last one counts
        (pax({b"path": b"x"}, b"X") + header(b"short"), "name", b"x"),  # Solaris's letter
        # links
        (header(b"l", b"2", link=b"t" * 100), "link", b"t" * 100),
        (header(b"@Long", b"K", 300) + pad(b"t" * 300) + header(b"l", b"1"), "link", b"t" * 300),
        (pax({b"linkpath": b"t"}) + header(b"l", b"2", link=b"x"), "link", b"t"),
        (pax({b"linkpath": b""}) + header(b"l", b"2", link=b"x"), "link", b"x"),
        # numbers
        (header(uid=b"\x80\0\0\0\xff\xff\xff\xfe"), "uid", 2**32 - 2),
        (pax({b"gid": b"4294967294"}) + header(), "gid", 2**32 - 2),
        (header(mode=b"\xff" * 8), "mode", 0o7777),
        (header(mtime=b"\xff" * 12), "mtime", -1),
        (header(mtime=b"\x80\0\0\0\x7f" + b"\xff" * 7), "mtime", 2**63 - 1),
        (pax({b"mtime": b"-0.5"}) + header(), "mtime", -1),
        (pax({b"mtime": b"1.000000001"}) + header(mtime=5), "mtime_ns", 1),
        (pax({b"mtime": b"", b"uid": b"", b"size": b""}) + header(mtime=5), "mtime", 5),
        (header(b"d", b"3", major=4095, minor=b"\x80\0\0\0\0\x0f\xff\xff"), "minor", 2**20 - 1),
        (header(b"d", b"4", major=8, minor=1), "major", 8),
        # kinds
        (header(b"f", b"\0"), "kind", b"0"),
        (header(b"f", b"7"), "kind", b"0"),
        (header(b"d/", b"\0", magic=b""), "kind", b"5"),  # how v7 wrote a directory
        (header(b"d/", b"0"), "kind", b"0"),  # but no other format did
        (header(b"l", b"1", 700), "size", 0),  # old pax archives: hard links carry a size but no data
        (header(b"l", b"2", 700), "data_size", 0),
        (header(b"d", b"5", 700), "size", 0),
        (header(b"p", b"6"), "kind", b"6"),
        # what does not concern a layer
        (pax({b"comment": b"a git commit", b"mtime": b"1"}, b"g") + header(), "mtime", 0),
        (header(b"label", b"V") + header(), "name", b"f"),
        (pax({b"VENDOR.key": b"x", b"SCHILY.dev": b"9"}) + header(), "name", b"f"),
    ],
)
def test_fields(archive: bytes, field: str, value: object) -> None:
    assert getattr(only(archive), field) == value


def test_the_pax_size_wins_and_moves_the_next_member() -> None:
    """The class of TARmageddon: a reader that skips by the header's size finds the header hidden in the data."""
    hidden = header(b"hidden")
    archive = pax({b"size": b"512"}) + header(b"visible", size=0) + hidden + header(b"next") + END
    members = read(archive)
    assert [(member.name, member.size) for member in members] == [(b"visible", 512), (b"next", 0)]


def test_sizes_beyond_8_gib() -> None:
    size = 2**33 + 1
    for head in (pax({b"size": b"%d" % size}) + header(), header(size=b"\x80\0\0\0" + size.to_bytes(8, "big"))):
        (member,) = TarReader().feed(head)
        assert (member.size, member.data_size, member.data_offset) == (size, size, len(head))


def test_positions() -> None:
    archive = entry(b"a", b"x" * 513) + pax({b"path": b"long"}) + entry(b"b", b"y") + header(b"c", b"5") + END
    members = read(archive)
    assert [(m.header_offset, m.data_offset, m.data_size) for m in members] == [
        (0, 512, 513),
        (1536, 3072, 1),
        (3584, 4096, 0),
    ]
    assert archive[members[1].data_offset :][:1] == b"y"


@pytest.mark.parametrize(
    ("records", "xattrs"),
    [
        ({b"SCHILY.xattr.user.a": b"1"}, {b"user.a": b"1"}),
        ({b"SCHILY.xattr.user.a": b""}, {b"user.a": b""}),
        ({b"SCHILY.xattr.user.a": bytes(range(256))}, {b"user.a": bytes(range(256))}),
        ({b"LIBARCHIVE.xattr.user.a": b"MQ"}, {b"user.a": b"1"}),
        ({b"LIBARCHIVE.xattr.user.a%3Db%20c": base64.b64encode(b"\xff\0")}, {b"user.a=b c": b"\xff\0"}),
        ({b"LIBARCHIVE.xattr.user.a": b"MQ", b"SCHILY.xattr.user.a": b"2"}, {b"user.a": b"2"}),
        ({b"SCHILY.xattr.user.a": b"2", b"LIBARCHIVE.xattr.user.a": b"MQ"}, {b"user.a": b"2"}),
        ({b"LIBARCHIVE.xattr.security.capability": b"MQ", b"LIBARCHIVE.xattr.user.a": b"MQ"}, {b"user.a": b"1"}),
        ({b"LIBARCHIVE.xattr.security%2Ecapability": b"MQ"}, None),
        ({b"comment": b"none"}, None),
    ],
)
def test_xattrs(records: dict[bytes, bytes], xattrs: dict[bytes, bytes] | None) -> None:
    assert only(pax(records) + header()).xattrs == xattrs


@pytest.mark.parametrize(
    "archive",
    [
        b"x" * 512,
        header(checksum=b"0000000\0"),
        header(size=b"-1"),
        header(size=b"\xff" * 12),  # negative
        header(size=b"\x80" + b"\xff" * 11),  # beyond 64 bits
        header(uid=b"\x80\0\0\0\xff\xff\xff\xff"),  # (uid_t)-1
        header(gid=b"\xff" * 8),
        pax({b"uid": b"4294967295"}) + header(),
        pax({b"uid": b"-1"}) + header(),
        pax({b"uid": b"1" * 21}) + header(),
        pax({b"size": b"1x"}) + header(),
        pax({b"size": b"9223372036854775808"}) + header(),
        pax({b"mtime": b"9223372036854775808"}) + header(),
        pax({b"mtime": b"soon"}) + header(),
        header(mtime=b"\x80\0\0\0\xff" + b"\xff" * 7),
        header(b"d", b"3", major=4096),
        header(b"d", b"3", minor=b"\x80\0\0\0\0\x10\0\0"),
        header(b"d", b"4", major=b"\xff" * 8),
        pax(b"99 path=x\n") + header(),
        pax({b"LIBARCHIVE.xattr.user.a": b"M"}) + header(),
        pax({b"LIBARCHIVE.xattr.user.a": b"M!Q="}) + header(),
        pax({b"path": b"one"}) + header(b"@Long", b"L", 3) + pad(b"two") + header(),
        header(b"@Long", b"L", 3) + pad(b"two") + pax({b"path": b"one"}) + header(),
        header(b"@Link", b"K", 3) + pad(b"two") + pax({b"linkpath": b"one"}) + header(b"l", b"2"),
        header(b"@Long", b"L", 3) + pad(b"two") + pax({b"GNU.sparse.name": b"one"}) + header(),
        pax({b"path": b"one"}) + pax({b"comment": b"x"}, kind=b"g") + header(),  # kept by some, forgotten by others
        header(b"x", b"x", size=b"\xff" * 12),
        pax({b"path": b"x"}) + END,  # an extension of nothing
        header() + bytes(512) + header(),  # readers differ about what a lone zero block means
        header(b"V", b"V", size=b"\xff" * 12),
        # Data, or further members? Readers differ, and what one of them does not see is not looked at.
        header(b"d/", b"\0", 1024, magic=b"") + entry(b"smuggled", b"evil"),
        pax({b"path": b"d/"}) + header(b"d", b"\0", 1024) + entry(b"smuggled", b"evil"),
    ],
)
def test_refused(archive: bytes) -> None:
    with pytest.raises(FormatError, match="tar@0x"):
        read(archive + END)


@pytest.mark.parametrize("kind", [b"D", b"M", b"N", b"A", b"I", b"8", b"\xff"])
def test_types_that_no_layer_has(kind: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="is of type"):
        read(header(b"f", kind) + END)


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"size", b"GNU.sparse.major"])
def test_global_headers_may_not_rename_members(key: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="global"):
        read(pax({key: b"1"}, b"g") + header() + END)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"X", b"g"])
def test_extensions_are_limited(kind: bytes) -> None:
    with pytest.raises(LimitExceeded, match="1048576"):
        read(header(b"x", kind, MAX_EXTENSION))
    many = header(b"@Long", b"L", 600_000) + pad(b"a" * 600_000)
    with pytest.raises(LimitExceeded):
        read(many + many)


def test_endless_global_headers_cost_no_memory() -> None:
    reader = TarReader()
    tracemalloc.start()
    try:
        for number in range(40):
            assert reader.feed(pax({b"k%d" % number: bytes(1 << 19)}, b"g")) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + b"whatever follows".ljust(512)])
def test_ends(end: bytes) -> None:
    assert [member.name for member in read(entry(b"a", b"data") + end)] == [b"a"]


def test_nothing_is_an_empty_archive() -> None:
    assert read(b"") == []
    assert read(END) == []


def test_a_cut_at_every_block_is_noticed() -> None:
    parts = [
        pax({b"path": b"p" * 700, b"SCHILY.xattr.user.a": b"x" * 900}) + entry(b"a", b"d" * 1500),
        header(b"@Long", b"L", 600) + pad(b"l" * 600) + header(b"@Long", b"K", 9) + pad(b"t") + header(b"l", b"2"),
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9000"})
        + entry(b"s", pad(b"1\n0\n600\n") + b"s" * 600),
        entry(b"z", b"last"),
    ]
    archive = b"".join(parts)
    whole = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
    for cut in range(0, len(archive) + 1, BLOCK):
        if cut in whole:
            read(archive[:cut])
        else:
            with pytest.raises(FormatError, match=r"truncated|ends"):
                read(archive[:cut])
    data_end = len(archive) - BLOCK + len(b"last")
    for cut in (1, 511, data_end - 1):
        with pytest.raises(FormatError):
            read(archive[:cut])
    for cut in range(data_end, len(archive)):  # what pads the last file is missing: umoci writes no more
        assert read(archive[:cut])[-1].name == b"z"


def test_skip_passes_over_data() -> None:
    archive = entry(b"a", b"x" * 5000) + entry(b"b", b"y") + END
    reader = TarReader()
    names = []
    offset = 0
    while not reader.ended:
        names += [member.name for member in reader.feed(archive[offset : offset + BLOCK])]
        offset = reader.skip()
    assert names == [b"a", b"b"]


def test_remembered_numbers_do_not_grow() -> None:
    reader = TarReader()
    for number in range(20_000):
        (member,) = reader.feed(header(b"f", mtime=number, uid=number % 7))
        assert (member.mtime, member.uid) == (number, number % 7)
    assert 0 < len(reader._plain._numbers) <= 1 << 14


def test_members_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.formats.tar.reader.MAX_MEMBERS", 3)
    assert len(read(header() * 3 + END)) == 3
    with pytest.raises(LimitExceeded, match="members"):
        read(header() * 4 + END)


def gnu_tar(folder: Path, *options: str) -> bytes:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    names = sorted(entry.name for entry in folder.iterdir())
    command = ["tar", "-C", str(folder), *options, "--numeric-owner", "-cf", "-", "--", *names]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    deep = folder / ("d" * 80) / ("e" * 80)
    deep.mkdir(parents=True)
    (deep / ("f" * 90)).write_bytes(b"deep")
    (folder / "link").symlink_to("t" * 98)
    (folder / "long link").symlink_to("t/" * 150)
    (folder / "plain").write_bytes(b"plain" * 1000)
    (folder / "hard").hardlink_to(folder / "plain")
    with (folder / "sparse").open("wb") as file:
        for position in range(40):
            file.seek(position << 16)
            file.write(b"%04d" % position * 1024)
        file.truncate(10 << 20)
    with (folder / "hole").open("wb") as file:
        file.truncate(1 << 20)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--format=v7"],
        ["--format=ustar"],
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=posix"],
        ["--format=gnu", "-S"],
        ["--format=oldgnu", "-S"],
        ["--format=posix", "-S", "--sparse-version=0.0"],
        ["--format=posix", "-S", "--sparse-version=0.1"],
        ["--format=posix", "-S", "--sparse-version=1.0"],
        ["--format=posix", "--pax-option=globexthdr.name=g,comment=hello"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("step", [BLOCK, 7 * BLOCK, 1 << 20])
def test_gnu_tar_is_the_judge(folder: Path, options: list[str], step: int) -> None:
    if options[0] in ("--format=v7", "--format=ustar"):
        # Names and links that these formats cannot say.
        options = [*options, "--exclude=long link", "--exclude=" + ("e" * 80 if "v7" in options[0] else "f" * 90)]
    archive = gnu_tar(folder, *options)
    members = {member.name.rstrip(b"/"): member for member in read(archive, step)}
    expected = [path for path in folder.rglob("*") if str(path.relative_to(folder)).encode() in members]
    assert len(expected) == len(members) >= 6
    first = next(member.name for member in members.values() if member.name in (b"hard", b"plain"))
    for path in expected:
        name = str(path.relative_to(folder)).encode()
        member, status = members[name], path.lstat()
        assert (member.mode, member.uid, member.gid) == (status.st_mode & 0o7777, status.st_uid, status.st_gid)
        if "--format=posix" in options:
            assert member.mtime * 10**9 + member.mtime_ns == status.st_mtime_ns
        assert member.mtime == status.st_mtime_ns // 10**9
        if path.is_symlink():
            assert (member.kind, member.link) == (b"2", os.readlink(bytes(path)))
        elif path.is_dir():
            assert member.kind == b"5"
        elif member.kind == b"1":
            assert {name, member.link} == {b"hard", b"plain"}
            assert member.link == first
        else:
            assert content(archive, member) == path.read_bytes()
            assert (member.sparse is not None) == ("-S" in options and name in (b"sparse", b"hole"))


def content(archive: bytes, member: Member) -> bytes:
    stored = archive[member.data_offset : member.data_offset + member.data_size]
    if member.sparse is None:
        return stored
    whole, position = bytearray(member.size), 0
    for offset, length in member.sparse:
        whole[offset : offset + length] = stored[position : position + length]
        position += length
    return bytes(whole)


def test_gnu_tar_writes_xattrs(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    value = bytes(range(256)) * 8
    try:
        os.setxattr(tmp_path / "f", "user.test", value)
        os.setxattr(tmp_path / "f", "user.empty", b"")
    except OSError as error:
        pytest.skip(f"no xattrs here: {error.strerror}")
    (member,) = read(gnu_tar(tmp_path, "--format=posix", "--xattrs", "--xattrs-include=user.*"))
    assert member.xattrs == {b"user.test": value, b"user.empty": b""}


def test_python_tarfile_agrees_on_everything_it_writes() -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            info = tarfile.TarInfo("x" * 99)
            info.size, info.uid, info.mtime = 600, 2**21 - 1, 2**33 - 1
            archive.addfile(info, io.BytesIO(b"d" * 600))
        (member,) = read(buffer.getvalue())
        assert (member.name, member.size, member.uid, member.mtime) == (b"x" * 99, 600, 2**21 - 1, 2**33 - 1)
