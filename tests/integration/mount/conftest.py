"""Images and directories to mount, and a check that nothing is left mounted."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerfs.formats.erofs.writer import Device, write_tree
from layerfs.formats.tree import Node, directory
from layerfs.linux.mount_api import umount
from layerfs.linux.mountinfo import read_mounts

BLOCK = 512


@dataclass(frozen=True)
class Image:
    """A merged tree and the files of its device table."""

    tree: Path
    devices: list[Path]


def regular(device: str, offset: int, size: int, mode: int = 0o644) -> Node:
    node = Node(stat.S_IFREG | mode, mtime=1_000_000_000, mtime_ns=123_456_789)
    node.device, node.offset, node.size = device, offset, size
    return node


def make_image(folder: Path, *, layers: int = 2) -> Image:
    """Make an image of ``layers`` devices; file ``fN`` lies in device N and holds ``layer N``."""
    root = directory(implicit=False)
    assert root.children is not None
    sub = directory(implicit=False)
    assert sub.children is not None
    root.children[b"dir"] = sub
    devices = []
    for number in range(layers):
        path = folder / f"layer{number}.tar"
        path.write_bytes(bytes(BLOCK) + f"layer {number}\n".encode().ljust(BLOCK, b"\0"))
        devices.append(path)
        root.children[b"f%d" % number] = regular(str(number), BLOCK, len(f"layer {number}\n"))
    sub.children[b"inner"] = root.children[b"f0"]
    program = regular("0", BLOCK, 8, 0o4755)
    sub.children[b"program"] = program
    image = write_tree(root, [Device(str(n), b"%064d" % n, 2) for n in range(layers)], bytes(range(16)))
    tree = folder / "tree.erofs"
    tree.write_bytes(image)
    return Image(tree, devices)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make_image(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    path.mkdir()
    yield path
    while any(entry.target == str(path) for entry in read_mounts()):
        umount(path, lazy=True)


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    path = tmp_path / "lower"
    (path / "dir").mkdir(parents=True)
    (path / "dir/file").write_text("lower\n")
    (path / "file").write_text("other\n")
    return path


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    path = tmp_path / "upper"
    path.mkdir()
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """Every test gives back its descriptors and leaves no mount."""
    gc.collect()  # what other tests have left open
    descriptors = len(os.listdir("/proc/self/fd"))
    mounts = {entry.mount_id for entry in read_mounts()}
    yield
    assert len(os.listdir("/proc/self/fd")) == descriptors
    left = [entry for entry in read_mounts() if entry.mount_id not in mounts and entry.target.startswith(str(tmp_path))]
    assert left == []
