"""Walks: depth, descriptors, and directories that move meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.directory_stack import DirectoryStack, walk_status
from layerfs.linux.safe_path import remove_tree


@pytest.fixture
def start(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    remove_tree(tmp_path / "d", missing_ok=True)


def _descend(stack: DirectoryStack, depth: int) -> None:
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=stack.fd)
        stack.push(b"d")


def test_a_deep_tree_needs_few_descriptors(start: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with DirectoryStack(start) as stack:
        _descend(stack, 2500)
        assert stack.depth == 2500
        assert len(os.listdir("/proc/self/fd")) < before + 140
        while stack.depth:
            stack.pop()
            os.stat(b"d", dir_fd=stack.fd)
        assert os.path.sameopenfile(stack.fd, start)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_way_back_is_compared(start: int, tmp_path: Path) -> None:
    with DirectoryStack(start) as stack:
        _descend(stack, 140)
        path = tmp_path
        for _ in range(9):
            path /= "d"
        (path / "d").rename(tmp_path / "moved")
        for _ in range(130):
            stack.pop()
        with pytest.raises(OSError) as caught:
            stack.pop()
        assert caught.value.errno == errno.ESTALE
        assert stack.depth == 10
    remove_tree(tmp_path / "moved")


def test_links_and_files_are_not_entered(start: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "file").write_text("")
    with DirectoryStack(start) as stack:
        for name in (b"link", b"file", b"none"):
            with pytest.raises(OSError):
                stack.push(name)
        assert stack.depth == 0


def test_statuses_of_everything_below(tmp_path: Path, start: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    found = sorted(status.st_ino for status in walk_status(start))
    assert found == sorted((tmp_path / path).lstat().st_ino for path in ("a", "a/b", "a/file", "link"))


def test_what_is_removed_during_a_walk_has_no_status(tmp_path: Path, start: int) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "in").mkdir(parents=True)
    walk = walk_status(start)
    first = next(walk)
    other = next(path for path in tmp_path.iterdir() if path.stat().st_ino != first.st_ino)
    remove_tree(str(other))
    kept = next(tmp_path.iterdir())
    assert [status.st_ino for status in walk] == [(kept / "in").stat().st_ino]


def test_a_directory_that_became_a_link_is_not_entered(tmp_path: Path, start: int) -> None:
    (tmp_path / "inside").mkdir()
    walk = walk_status(start)
    next(walk)
    (tmp_path / "inside").rmdir()
    (tmp_path / "inside").symlink_to("/")
    assert list(walk) == []
