"""Walks: depth, descriptors, and directories that move meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.directory_stack import DirectoryStack
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
