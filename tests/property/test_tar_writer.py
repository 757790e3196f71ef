"""What the tar writer writes, every reader reads back: ours, Python's and GNU tar."""

from __future__ import annotations

import io
import subprocess
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.formats.tar.writer import END, clamp_time, encode_member, padding

_names = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=120).map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"_")),
        st.sampled_from([b"a", b"long" * 30, "größe".encode(), b" ", b"\xff\xfe", b"new\nline"]),
    ).filter(lambda part: part not in (b".", b"..")),
    min_size=1, max_size=4,
).map(b"/".join)  # fmt: skip
_ids = st.one_of(st.integers(0, 70_000), st.integers(0, 2**32 - 2))
_xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.odd=name", b"security.capability", b"user.%41", "user.ä".encode()]),
    st.binary(max_size=600), max_size=3,
)  # fmt: skip


@st.composite
def members(draw: st.DrawFn) -> Member:
    kind = draw(st.sampled_from([b"0", b"1", b"2", b"3", b"4", b"5", b"6"]))
    name = draw(_names) + (b"/" if kind == b"5" else b"")
    link = draw(_names) if kind in b"12" else b""
    device = kind in b"34"
    return Member(
        name, kind, draw(st.integers(0, 0o7777)), draw(_ids), draw(_ids), draw(st.integers(-(2**40), 2**40)),
        draw(st.sampled_from([0, 1, 500_000_000, 123_456_789, 999_999_999])),
        draw(st.integers(0, 3000)) if kind == b"0" else 0, link,
        draw(st.integers(0, 4095)) if device else 0, draw(st.integers(0, 0xFFFFF)) if device else 0,
        draw(_xattrs) or None, 0, 0, 0, None,
    )  # fmt: skip


def _comparable(member: Member) -> tuple[object, ...]:
    return (
        member.name, member.kind, member.mode, member.uid, member.gid, member.mtime, member.mtime_ns, member.size,
        member.link, member.major, member.minor, member.xattrs,
    )  # fmt: skip


def _archive(written: list[Member]) -> bytes:
    return b"".join(encode_member(m) + b"x" * m.size + padding(m.size) for m in written) + END


@given(st.lists(members(), max_size=5))
def test_our_reader_reads_what_was_written(written: list[Member]) -> None:
    reader = TarReader()
    found = list(reader.feed(_archive(written)))
    reader.close()
    assert [_comparable(member) for member in found] == [_comparable(member) for member in written]


@given(st.lists(members(), max_size=5))
def test_tarfile_reads_what_was_written(written: list[Member]) -> None:
    with tarfile.open(fileobj=io.BytesIO(_archive(written)), errors="surrogateescape") as tar:
        found = tar.getmembers()
    for info, member in zip(found, written, strict=True):
        assert info.name.encode("utf-8", "surrogateescape") == member.name.rstrip(b"/")
        assert info.linkname.encode("utf-8", "surrogateescape") == member.link
        assert (info.type, info.mode, info.uid, info.gid) == (member.kind, member.mode, member.uid, member.gid)
        assert info.size == member.size
        assert abs(info.mtime - (member.mtime + member.mtime_ns / 1e9)) < 1e-3
        assert (info.devmajor, info.devminor) == (member.major, member.minor)


@settings(max_examples=15)
@given(st.lists(members().filter(lambda member: member.mtime >= 0), max_size=20))
def test_gnu_tar_reads_what_was_written(written: list[Member]) -> None:
    words = ["tar", "--list", "--quoting-style=escape", "--file=-"]
    done = subprocess.run(words, input=_archive(written), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(written)


@given(members())
def test_the_same_member_gives_the_same_bytes(member: Member) -> None:
    first = encode_member(member)
    assert len(first) % BLOCK == 0
    member.xattrs = dict(reversed((member.xattrs or {}).items()))
    assert encode_member(member) == first


@given(members(), st.integers(0, 2**33))
def test_times_after_the_limit_become_the_limit(member: Member, latest: int) -> None:
    before = (member.mtime, member.mtime_ns)
    clamp_time(member, latest)
    assert (member.mtime, member.mtime_ns) == min(before, (latest, 0))
