"""The tool that judges mounts must see every difference itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.tree_compare import describe, differences

TIME_NS = 1_700_000_000_123_456_789


def _tree(root: Path) -> Path:
    (root / "d" / "deep").mkdir(parents=True)
    (root / "f").write_bytes(b"hello")
    os.link(root / "f", root / "d" / "same")
    (root / "d" / "twin").write_bytes(b"hello")
    (root / "l").symlink_to("f")
    os.mkfifo(root / "p")
    os.setxattr(root / "f", "user.note", b"x")
    _set_times(root)
    return root


def _set_times(root: Path) -> None:
    for directory, _, files in os.walk(root, topdown=False):
        for name in [*files, "."]:
            os.utime(os.path.join(directory, name), ns=(TIME_NS, TIME_NS), follow_symlinks=False)


def test_equal_trees(tmp_path: Path) -> None:
    left, right = describe(_tree(tmp_path / "a")), describe(_tree(tmp_path / "b"))
    assert differences(left, right) == []
    assert left.keys() == {b".", b"d", b"d/deep", b"d/same", b"d/twin", b"f", b"l", b"p"}
    assert left[b"f"].links == (b"d/same", b"f")


def _replace_link(root: Path) -> None:
    (root / "l").unlink()
    (root / "l").symlink_to("d/../f")


def _split_link(root: Path) -> None:
    os.setxattr(root / "d" / "twin", "user.note", b"x")
    (root / "d" / "same").unlink()
    os.link(root / "d" / "twin", root / "d" / "same")


def _same_size(root: Path) -> None:
    (root / "d" / "twin").write_bytes(b"HELLO")


def _longer(root: Path) -> None:
    (root / "d" / "twin").write_bytes(b"hello!")


def _later(root: Path) -> None:
    os.utime(root / "d" / "deep", ns=(TIME_NS, TIME_NS + 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "d" / "deep").chmod(0o700), ["d/deep: mode"]),
        (lambda root: os.setxattr(root / "f", "user.note", b"y"), ["d/same: xattrs", "f: xattrs"]),
        (lambda root: (root / "new").mkdir(), ["only right: new"]),
        (lambda root: (root / "p").unlink(), ["only left: p"]),
        (_replace_link, ["l: size"]),
        (_split_link, ["d/same: links", "d/twin: links", "f: links"]),
        (_same_size, ["d/twin: sha256"]),
        (_longer, ["d/twin: size"]),
        (_later, ["d/deep: mtime_ns"]),
    ],
)
def test_every_difference_is_seen(tmp_path: Path, change: Callable[[Path], None], expected: list[str]) -> None:
    left, right = _tree(tmp_path / "a"), _tree(tmp_path / "b")
    change(right)
    if change is not _later:
        _set_times(right)
    found = differences(describe(left), describe(right))
    assert [
        line.partition(" (")[0] if line.startswith("only") else " ".join(line.split()[:2]) for line in found
    ] == expected


@pytest.mark.needs_root
def test_owner_and_device_number(tmp_path: Path) -> None:
    left, right = _tree(tmp_path / "a"), _tree(tmp_path / "b")
    os.chown(right / "f", 12, 34)
    os.mknod(left / "null", 0o20666, os.makedev(1, 3))
    os.mknod(right / "null", 0o20666, os.makedev(1, 5))
    _set_times(left)
    _set_times(right)
    found = differences(describe(left), describe(right))
    assert found == [
        "d/same: uid 0 != 12; gid 0 != 34",
        "f: uid 0 != 12; gid 0 != 34",
        f"null: rdev {os.makedev(1, 3)} != {os.makedev(1, 5)}",
    ]


def test_ignored_fields_and_the_limit(tmp_path: Path) -> None:
    left, right = _tree(tmp_path / "a"), _tree(tmp_path / "b")
    for name in ("f", "l", "p"):
        os.utime(right / name, ns=(1, 1), follow_symlinks=False)
    assert differences(describe(left), describe(right), ignore={"mtime_ns"}) == []
    assert differences(describe(left), describe(right), most=1)[1:] == ["... and 3 more"]
