"""Files that are copied up: without a name where the file system can, through one in the work directory elsewhere."""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EIO, ENOENT, ENOSPC

import pytest

from layerfs.linux import nameless
from layerfs.union import file
from layerfs.union.change import Changes
from layerfs.union.node import ROOT
from layerfs.union.upper import Upper
from tests.unit.union.conftest import Work, failing


def _upper(work: Work) -> Upper:
    upper = work.union._upper
    assert upper is not None
    return upper


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def either(work: Work, request: pytest.FixtureRequest) -> Work:
    """A union that copies either way."""
    upper = _upper(work)
    if request.param and not upper.nameless:
        pytest.skip("this file system, or this kernel without a privilege, gives no open file a name")
    upper.nameless = request.param
    return work


def test_which_way_a_file_is_copied(either: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, named = _upper(either), []
    temporary = upper.temporary

    def count() -> bytes:
        named.append(1)
        return temporary()

    monkeypatch.setattr(upper, "temporary", count)
    either.union.setattr(either.at("top").ino, Changes(mode=0o600))
    assert len(named) == (not upper.nameless)


def test_a_copy_whose_directory_keeps_no_times(either: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(EIO, os.strerror(EIO))

    found = either.at("a/b/deep")
    either.union.setattr(either.at("a/b").ino, Changes(mode=0o700))
    with monkeypatch.context() as broken:
        broken.setattr("layerfs.union.copy_up._dress", lambda *_: None)
        broken.setattr(os, "utime", fail)
        assert either.union.write(found.ino, 0, b"D") == 1
    assert (either.upper / "a/b/deep").read_bytes() == b"Deep"


def test_a_copy_takes_no_place_that_somebody_else_has_taken(work: Work) -> None:
    upper = _upper(work)
    if not upper.nameless:
        pytest.skip("this file system, or this kernel without a privilege, gives no open file a name")
    found = work.at("top")
    (work.upper / "top").write_bytes(b"of somebody else")
    with failing(EEXIST):
        work.union.write(found.ino, 0, b"NEW")
    assert (work.upper / "top").read_bytes() == b"of somebody else"


def test_a_copy_is_what_its_original_is(either: Work) -> None:
    found = either.at("top")
    before = os.stat(either.upper)
    assert either.union.write(found.ino, 5000, b"more") == 4
    assert (either.upper / "top").read_bytes() == b"x" * 5000 + b"more"
    status = (either.upper / "top").stat()
    assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (1, stat.S_IMODE(found.mode))
    assert os.stat(either.upper).st_mtime_ns == before.st_mtime_ns
    either.union.setattr(either.at("a/b/deep").ino, Changes(mode=0o751))
    assert stat.S_IMODE((either.upper / "a/b/deep").stat().st_mode) == 0o751
    assert (either.upper / "a/b/deep").read_bytes() == b"deep"
    assert either.unfinished() == []


def test_a_file_without_a_name_is_copied(either: Work) -> None:
    found = either.at("top")
    either.union.unlink(ROOT, b"top")
    assert either.union.write(found.ino, 0, b"NEW") == 3
    assert either.union.read(found.ino, 0, 5) == b"NEWxx"
    assert either.union.getattr(found.ino).nlink == 0
    assert not stat.S_ISREG((either.upper / "top").lstat().st_mode)
    assert either.unfinished() == []


@pytest.mark.parametrize("place", ["layerfs.union.copy_up._dress", "os.pwrite", "place"])
def test_a_copy_that_fails_leaves_nothing(either: Work, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(EIO, os.strerror(EIO))

    found = either.at("top")
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as broken:
        if place == "place":
            broken.setattr(_upper(either), "place_copy", fail)
        else:
            broken.setattr(place, fail)
        with failing(EIO):
            either.union.write(found.ino, 0, b"NEW")
    assert (either.unfinished(), os.listdir(either.upper)) == ([], [])
    assert len(os.listdir("/proc/self/fd")) == before
    assert either.union.write(found.ino, 0, b"NEW") == 3
    assert (either.upper / "top").read_bytes() == b"NEW" + b"x" * 4997


def test_where_an_open_file_cannot_get_a_name(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _directory: int, _name: bytes) -> None:
        raise OSError(ENOENT, os.strerror(ENOENT))  # what a kernel before 6.10 answers without a privilege

    monkeypatch.setattr("layerfs.union.upper.link_open_file", refuse)
    assert not _upper(work)._may_name_later()
    assert work.unfinished() == []


def test_an_open_file_never_takes_the_place_of_another(work: Work) -> None:
    upper = _upper(work)
    fd = os.open(b".", os.O_RDWR | os.O_TMPFILE, dir_fd=upper.root)  # by the mount that the union has of it
    try:
        (work.upper / "there").write_bytes(b"old")
        with pytest.raises(FileExistsError):
            nameless.link_open_file(fd, upper.root, b"there")
        nameless.link_open_file(fd, upper.root, b"new")
    finally:
        os.close(fd)
    assert (work.upper / "there").read_bytes() == b"old"
    assert (work.upper / "new").read_bytes() == b""


def test_a_large_write_is_written_whole_or_as_far_as_there_is_room(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = file._PIECE
    found = work.create("a", "large")
    data = os.urandom(3 * piece + 5)
    assert work.union.write(found.ino, 7, data) == len(data)
    assert (work.upper / "a/large").read_bytes() == bytes(7) + data

    pwrite = os.pwrite

    def full(fd: int, some: memoryview, offset: int) -> int:
        if offset >= 2 * piece:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        return pwrite(fd, some, offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert work.union.write(found.ino, 0, data) == 2 * piece
    with failing(ENOSPC):
        work.union.write(found.ino, 2 * piece, data)
