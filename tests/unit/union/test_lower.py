"""What lies below a union: layers that are damaged or go, and the marks of other tools."""

from __future__ import annotations

import os
from errno import (
    EIO,
    EPERM,
)
from pathlib import Path
from unittest.mock import Mock

import pytest

from layerfs.formats.whiteout import USER_PREFIX
from layerfs.union.stack import StackLower
from tests.unit.union.conftest import FILES, Make, failing, make_image


def test_a_layer_cut_short_is_an_error_of_the_disk(tmp_path: Path, make: Make) -> None:
    work = make()
    if not (tmp_path / "layer.tar").exists():
        pytest.skip("directories have no tar")
    os.truncate(tmp_path / "layer.tar", 600)
    with failing(EIO):
        work.read("top")
    with failing(EIO):
        work.union.write(work.at("top").ino, 0, b"x")
    assert os.listdir(work.upper) == []


def test_a_missing_layer_is_an_error_of_the_disk(tmp_path: Path) -> None:
    lower = make_image(tmp_path, "gone")
    found = lower.lookup(lower.root, b"top")
    assert found is not None
    with failing(EIO):
        lower.open(found)
    lower.close()


def test_a_layer_that_goes_while_it_is_mounted(tmp_path: Path) -> None:
    lower = make_image(tmp_path)
    (tmp_path / "layer.tar").unlink()
    found = lower.lookup(lower.root, b"top")
    assert found is not None
    file = lower.open(found)
    assert os.pread(file.fd, file.size, file.offset) == FILES["top"]
    lower.close()


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lower/real").mkdir(parents=True)
    (tmp_path / "lower/points").mkdir()
    os.setxattr(tmp_path / "lower/points", "user.overlay.redirect", b"/real")
    lower = StackLower([str(tmp_path / "lower")], USER_PREFIX)
    with failing(EPERM):
        lower.lookup(lower.root, b"points")
    lower.close()


def test_whiteouts_as_xattrs(tmp_path: Path) -> None:
    for layer in ("top", "bottom"):
        (tmp_path / layer).mkdir()
        for name in ("f", "g"):
            (tmp_path / layer / name).write_bytes(b"")
    os.setxattr(tmp_path / "top", "user.overlay.opaque", b"x")
    os.setxattr(tmp_path / "top/f", "user.overlay.whiteout", b"")
    lower = StackLower([str(tmp_path / "top"), str(tmp_path / "bottom")], USER_PREFIX)
    assert [name for name, _ in lower.entries(lower.root)] == [b"g"]
    assert lower.lookup(lower.root, b"f") is None
    lower.close()


def test_whiteouts_as_containers_storage_lays_them_down(tmp_path: Path) -> None:
    for path in (
        "top/.wh.gone",
        "top/kept",
        "top/.wh.kept",
        "top/o/.wh..wh..opq",
        "top/o/new",
        "top/d/.wh.f",
        "top/d/g",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("top")
    (tmp_path / "top/u").mkdir()
    os.setxattr(tmp_path / "top/u", "user.fuseoverlayfs.opaque", b"y")
    for path in ("gone", "kept", "o/old", "d/f", "d/g", "d/h", "u/old", "below"):
        (tmp_path / "bottom" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bottom" / path).write_text("bottom")
    lower = StackLower([str(tmp_path / "top"), str(tmp_path / "bottom")], USER_PREFIX)

    def names(*path: bytes) -> list[bytes]:
        entry = lower.root
        for part in path:
            found = lower.lookup(entry, part)
            assert found is not None
            entry = found
        return sorted(name for name, _ in lower.entries(entry))

    assert names() == [b"below", b"d", b"kept", b"o", b"u"]
    assert (names(b"o"), names(b"d"), names(b"u")) == ([b"new"], [b"g", b"h"], [])
    for name in (b"gone", b".wh.gone", b".wh.kept"):
        assert lower.lookup(lower.root, name) is None
    lower.close()
    (tmp_path / "top/.wh..wh..opq").write_text("")
    lower = StackLower([str(tmp_path / "top"), str(tmp_path / "bottom")], USER_PREFIX)
    assert names() == [b"d", b"kept", b"o", b"u"]
    lower.close()


@pytest.mark.parametrize(("room", "readings"), [(50_000, 1), (100, 2)])
def test_merged_directories_are_read_once_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, readings: int
) -> None:
    monkeypatch.setattr("layerfs.union.stack._LISTED", room)
    number = 300
    for layer in ("top", "bottom"):
        for index in range(number):
            (tmp_path / f"{layer}/d{index}/of-{layer}").mkdir(parents=True)
    lower = StackLower([str(tmp_path / "top"), str(tmp_path / "bottom")], USER_PREFIX)
    directories = [lower.lookup(lower.root, b"d%d" % index) for index in range(number)]
    scan = Mock(wraps=os.scandir)
    monkeypatch.setattr(os, "scandir", scan)
    for _ in range(2):
        for directory in directories:
            assert directory is not None
            assert lower.lookup(directory, b"of-top") is not None
            assert lower.lookup(directory, b"of-bottom") is not None
            assert lower.lookup(directory, b"of-none") is None
    assert scan.call_count == 2 * number * readings
    assert sum(len(names) + 1 for names in lower._listings.values()) == lower._listed <= room
    lower.close()
