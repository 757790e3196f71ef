"""What layers and containers may have on disk that means something to a union, and what it must not do there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from errno import EIO, ENODATA, ENOTSUP, EPERM
from pathlib import Path

import pytest

from layerfs.formats.whiteout import OVERRIDE_XATTR, USER_PREFIX
from layerfs.linux.inode_flags import FLAGS
from layerfs.union.change import Changes
from layerfs.union.stack import StackLower
from layerfs.union.union import Union
from layerfs.union.upper import Upper
from tests.unit.union.conftest import Caller, Work, failing, make_image


@contextlib.contextmanager
def union_over(folder: Path, *layers: str, override: bytes | None = None) -> Iterator[Work]:
    """Yield a union of layers, top first, with the upper directory of the union before."""
    for name in ("upper", "work"):
        (folder / name).mkdir(exist_ok=True)
    upper = Upper(str(folder / "upper"), str(folder / "work"), USER_PREFIX, override=override)
    paths = [str(folder / layer) for layer in layers]
    union = Union(StackLower(paths, USER_PREFIX, device=upper.device, override=override), upper)
    try:
        yield Work(union, folder / "upper", Caller(os.geteuid(), os.getegid()))
    finally:
        union.close()


def files(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_a_listing_that_failed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "lower/d/a", "lower/d/b")
    with union_over(tmp_path, "lower") as work:
        ino = work.at("d").ino
        with monkeypatch.context() as patched:

            def fail(*_: object) -> list[tuple[bytes, object]]:
                raise OSError(EIO, os.strerror(EIO))

            patched.setattr(StackLower, "entries", fail)
            for place in (0, 2):
                with failing(EIO):
                    list(work.union.readdir(ino, place))
        assert work.names("d") == ["a", "b"]


def test_the_mark_of_fuse_overlayfs_hides_no_more_than_it_hid(tmp_path: Path) -> None:
    files(tmp_path, "top/d/f", "bottom/d/hidden", "bottom/e/g")
    os.setxattr(tmp_path / "top/d", "user.fuseoverlayfs.opaque", b"y")
    with union_over(tmp_path, "top", "bottom") as work:
        assert work.names("d") == ["f"]
        work.create("d", "new")
        work.create("e", "new")
        assert work.union.listxattr(work.at("d").ino, lambda: True) == []
        for name in (b"user.fuseoverlayfs.opaque", OVERRIDE_XATTR):
            if name == OVERRIDE_XATTR and work.union._upper is not None and work.union._upper.override is None:
                continue
            with failing(ENOTSUP):
                work.union.setxattr(work.at("e").ino, name, b"y", 0)
    with union_over(tmp_path, "top", "bottom") as work:
        assert (work.names("d"), work.names("e")) == (["f", "new"], ["g", "new"])


def test_a_redirect_in_a_layer_has_a_name_and_no_more(tmp_path: Path) -> None:
    files(tmp_path, "lower/d/a", "lower/d/points/b", "lower/d/z")
    os.setxattr(tmp_path / "lower/d/points", "user.overlay.redirect", b"/d")
    with union_over(tmp_path, "lower") as work:
        for new in ("one", "two"):
            found = {name: attributes.nlink for name, attributes in work.entries("d")}
            assert sorted(found) == [".", "..", "a", "points", "z"]
            assert found["points"] == -1
            work.create("", new)
        work.create("d", "new")
        assert work.names("d") == ["a", "new", "points", "z"]


def test_marks_of_an_overlay_inside_the_union(tmp_path: Path) -> None:
    files(tmp_path, "lower/n/f")
    os.setxattr(tmp_path / "lower/n", "user.overlay.overlay.opaque", b"y")
    with union_over(tmp_path, "lower") as work:
        for _ in range(2):
            ino = work.at("n").ino
            assert work.union.getxattr(ino, b"user.overlay.opaque") == b"y"
            assert work.union.listxattr(ino, lambda: True) == [b"user.overlay.opaque"]
            with failing(ENODATA):
                work.union.getxattr(ino, b"user.overlay.overlay.opaque")
            work.union.setattr(ino, Changes(mode=0o700))  # copies it up
        assert work.names("n") == ["f"]


def test_one_inode_in_two_layers_is_two_files(tmp_path: Path) -> None:
    files(tmp_path, "bottom/a", "bottom/linked")
    os.link(tmp_path / "bottom/linked", tmp_path / "bottom/same")
    (tmp_path / "top").mkdir()
    os.link(tmp_path / "bottom/a", tmp_path / "top/b")
    with union_over(tmp_path, "top", "bottom") as work:
        assert work.at("a").ino != work.at("b").ino
        assert work.at("linked").ino == work.at("same").ino
        work.write("a", b"changed")
        work.write("linked", b"changed")
        assert work.read("b") == b"bottom/a"
        assert work.read("same") == b"changedlinked"
        assert os.listdir(work.upper).count("b") == 0


def test_a_whiteout_that_hides_nothing_makes_room_for_a_link(tmp_path: Path) -> None:
    files(tmp_path, "lower/a")
    (tmp_path / "upper").mkdir()
    os.mknod(tmp_path / "upper/x", stat.S_IFCHR, 0)
    with union_over(tmp_path, "lower") as work:
        assert work.find("x") is None
        work.union.link(work.at("a").ino, work.at("").ino, b"x")
        assert work.at("x").ino == work.at("a").ino


@pytest.mark.parametrize("make", [os.mkfifo])
def test_modes_that_no_xattr_can_keep(tmp_path: Path, make: object) -> None:
    (tmp_path / "lower").mkdir()
    os.mkfifo(tmp_path / "lower/fifo")
    (tmp_path / "lower/fifo").chmod(0o666)
    with union_over(tmp_path, "lower", override=OVERRIDE_XATTR) as work:
        ino = work.at("fifo").ino
        work.union.setattr(ino, Changes(atime_ns=0, mtime_ns=0))
        assert stat.S_IMODE(work.union.getattr(ino).mode) == 0o666
        work.union.setattr(ino, Changes(mode=0o606))
        assert stat.S_IMODE(work.union.getattr(ino).mode) == 0o606


def test_a_large_file_whose_layer_was_cut_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.union.copy_up._SMALL", 1000)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    lower = make_image(tmp_path)
    upper = Upper(str(tmp_path / "upper"), str(tmp_path / "work"), USER_PREFIX)
    with contextlib.closing(Union(lower, upper)) as union:
        work = Work(union, tmp_path / "upper", Caller())
        os.truncate(tmp_path / "layer.tar", 3000)
        with failing(EIO):
            union.write(work.at("top").ino, 0, b"x")
        assert os.listdir(work.upper) == []


def test_nothing_of_a_layer_goes_from_a_directory_that_is_append_only(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out once: the copy of a directory is not, and what is set through the mount is known."""
    asked: list[int] = []

    def ask(fd: int) -> bool:
        asked.append(fd)
        return True

    monkeypatch.setattr("layerfs.union.upper.is_append_only", ask)
    monkeypatch.setattr("layerfs.union.flags.write_flags", lambda *_: None)
    union, top, inner = work.union, work.at("a").ino, work.at("a/b").ino
    union.unlink(inner, b"deep")
    assert not asked
    union.set_flags(top, FLAGS, bytes(4))
    for _ in range(2):
        with failing(EPERM):
            union.unlink(top, b"f")
    assert len(asked) == 2
    monkeypatch.setattr("layerfs.union.upper.is_append_only", lambda _: False)
    union.unlink(top, b"f")
    monkeypatch.setattr("layerfs.union.upper.is_append_only", ask)
    union.rmdir(top, b"b")
    assert len(asked) == 2
