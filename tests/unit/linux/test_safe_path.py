"""Safe paths: nothing outside the root is reached, read, made or removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.inode_flags import FLAGS, write_flags
from layerfs.linux.safe_path import open_in_root, remove_tree
from tests.union_oracle import USER, acting_as, errno_of, opened


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "outside").write_text("secret")
    top = tmp_path / "root"
    (top / "dir").mkdir(parents=True)
    (top / "dir" / "file").write_text("inside")
    (top / "absolute").symlink_to("/dir/file")
    (top / "escape").symlink_to("../../../outside")
    (top / "up").symlink_to("..")
    (top / "loop").symlink_to("loop")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"/dir/file", b"dir/../dir/file", b"absolute", b"../../dir/file", b"up/dir/file"])
def test_in_root_follows_like_a_container(root: int, path: bytes) -> None:
    assert _read(open_in_root(root, path)) == b"inside"


@pytest.mark.parametrize(
    ("path", "number"),
    [(b"escape", errno.ENOENT), (b"up/outside", errno.ENOENT), (b"loop", errno.ELOOP), (b"dir/file/x", errno.ENOTDIR)],
)
def test_in_root_never_leaves(root: int, path: bytes, number: int) -> None:
    with pytest.raises(OSError) as caught:
        open_in_root(root, path)
    assert caught.value.errno == number
    assert caught.value.filename == os.fsdecode(path)


def test_remove_tree_does_not_follow(tmp_path: Path, root: int) -> None:
    remove_tree(tmp_path / "root")
    assert (tmp_path / "outside").read_text() == "secret"
    assert not (tmp_path / "root").exists()


def test_remove_tree_of_files_links_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    (tmp_path / "l").symlink_to("f")
    remove_tree(tmp_path / "l")
    assert (tmp_path / "f").exists()
    remove_tree(tmp_path / "f")
    remove_tree(tmp_path / "f", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        remove_tree(tmp_path / "f")


@pytest.mark.parametrize("depth", [63, 64, 65, 2500])
def test_remove_tree_of_any_depth_with_few_descriptors(tmp_path: Path, depth: int) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("d", dir_fd=fd)
        os.mkdir("e", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
        del level
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open(tmp_path, os.O_RDONLY)
    remove_tree("d", dir_fd=fd)
    os.close(fd)
    assert sorted(os.listdir(tmp_path)) == ["e", "f"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_remove_tree_stops_when_asked(tmp_path: Path) -> None:
    (tmp_path / "t" / "a").mkdir(parents=True)

    def stop() -> None:
        raise InterruptedError

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InterruptedError):
        remove_tree(tmp_path / "t", check=stop)
    assert len(os.listdir("/proc/self/fd")) == before


def test_remove_tree_without_permissions(tmp_path: Path) -> None:
    inner = tmp_path / "t" / "a"
    inner.mkdir(parents=True)
    (inner / "f").write_text("")
    inner.chmod(0o000)
    remove_tree(tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.needs_root
@pytest.mark.parametrize("depth", [2, 80])
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_remove_tree_of_a_user_without_permissions(depth: int, mode: int) -> None:
    """Root may do all: so as somebody who is not."""
    place = Path(tempfile.mkdtemp(prefix="layerfs-remove-"))
    place.chmod(0o777)
    try:
        with acting_as(USER):
            inner = place.joinpath("top", *["d"] * depth)
            inner.mkdir(parents=True)
            (inner / "file").write_text("")
            for directory in [inner, *inner.parents][: depth + 1]:
                directory.chmod(mode)
            remove_tree(place / "top")
            assert not list(place.iterdir())
    finally:
        shutil.rmtree(place)


@pytest.mark.needs_root
def test_what_chattr_protects(tmp_path: Path) -> None:
    """It stays, until somebody takes the protection away on purpose."""
    top = tmp_path / "top"
    (top / "append" / "deep").mkdir(parents=True)
    (top / "file").write_text("")
    (top / "append" / "deep" / "file").write_text("")
    (top / "link").symlink_to("/nowhere")
    names = ("append/deep/file", "append/deep", "append", "file")
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(opened(top / name)) for name in names]
        try:
            for fd, flag in zip(fds, (0x10, 0x10, 0x20, 0x20), strict=True):
                write_flags(fd, FLAGS, flag.to_bytes(4, sys.byteorder))
        except OSError as error:
            pytest.skip(f"no such flags here: {error}")
        assert errno_of(lambda: remove_tree(top)) == errno.EPERM
        assert errno_of((top / "file").unlink) == errno.EPERM

        remove_tree(top, unprotect=True)
    assert not top.exists()


@pytest.mark.needs_root
def test_what_chattr_protects_deep_below(tmp_path: Path) -> None:
    top = fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        if fd != top:
            os.close(fd)
        fd = below
        if level in {5, 700, 1499}:
            os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
            file = os.open("file", os.O_RDONLY, dir_fd=fd)
            try:
                write_flags(file, FLAGS, (0x10).to_bytes(4, sys.byteorder))
                write_flags(fd, FLAGS, (0x20).to_bytes(4, sys.byteorder))
            except OSError as error:
                pytest.skip(f"no such flags here: {error}")
            finally:
                os.close(file)
    os.close(fd)
    os.close(top)
    remove_tree(tmp_path / "d", unprotect=True)
    assert not list(tmp_path.iterdir())
