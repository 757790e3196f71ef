"""The mount API on the running kernel: detached mounts, messages, private namespaces."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux import mount_api, probe
from layerfs.linux.mount_api import MountAttribute
from layerfs.linux.mountinfo import find_holders, find_mount, mount_id, read_mounts
from layerfs.linux.private_namespace import run_in_private_namespace
from layerfs.linux.safe_path import open_in_root, remove_tree

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(not probe.feature("mount-api").usable, reason=probe.feature("mount-api").reason),
]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    gc.collect()  # what other tests have left open
    before = len(os.listdir("/proc/self/fd")), {entry.mount_id for entry in read_mounts()}
    yield
    assert (len(os.listdir("/proc/self/fd")), {entry.mount_id for entry in read_mounts()}) == before


def _tmpfs(attributes: MountAttribute = MountAttribute.NONE) -> int:
    context = mount_api.fsopen("tmpfs")
    try:
        mount_api.fsconfig_string(context, "size", "1m")
        mount_api.fsconfig_create(context)
        return mount_api.fsmount(context, attributes)
    finally:
        os.close(context)


def _attach(mount: int, target: Path) -> None:
    place = os.open(target, os.O_PATH)
    try:
        mount_api.move_mount(mount, place)
    finally:
        os.close(place)


def test_a_detached_mount_is_usable_and_invisible(tmp_path: Path) -> None:
    mount = _tmpfs()
    os.mkdir("inside", dir_fd=mount)
    assert os.path.isdir(f"/proc/self/fd/{mount}/inside")
    assert mount_id(mount) not in {entry.mount_id for entry in read_mounts()}
    _attach(mount, tmp_path)
    entry = find_mount(tmp_path)
    assert entry is not None
    assert (entry.mount_id, entry.fstype, entry.option("size")) == (mount_id(mount), "tmpfs", "1024k")
    os.close(mount)
    mount_api.umount(tmp_path)
    assert find_mount(tmp_path) is None


def test_a_mount_is_found_by_a_name_that_the_kernel_escapes(tmp_path: Path) -> None:
    place = tmp_path / "a b\\\t"
    place.mkdir()
    mount = _tmpfs()
    _attach(mount, place)
    entry = find_mount(place)
    assert entry is not None
    assert (entry.mount_id, entry.target) == (mount_id(mount), str(place))
    os.close(mount)
    mount_api.umount(place)
    assert find_mount(place) is None


def test_errors_carry_what_the_kernel_said() -> None:
    context = mount_api.fsopen("overlay")
    try:
        with pytest.raises(OSError, match=r"option nonsense=1: .*[Uu]nknown parameter 'nonsense'") as caught:
            mount_api.fsconfig_string(context, "nonsense", "1")
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="create: Invalid argument"):
            mount_api.fsconfig_create(context)
        assert mount_api.read_messages(context) == []
        with pytest.raises(OSError, match="longer than 255 bytes") as caught:
            mount_api.fsconfig_string(context, "upperdir", "/" + "x" * 255)
        assert caught.value.errno == errno.ENAMETOOLONG
    finally:
        os.close(context)
    with pytest.raises(OSError, match="fsopen nofs: No such device"):
        mount_api.fsopen("nofs")


def test_a_page_of_options_is_the_limit_of_the_old_call(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="do not fit into one page") as caught:
        mount_api.legacy_mount("none", tmp_path, "tmpfs", 0, "size=1m," * (os.sysconf("SC_PAGE_SIZE") // 8))
    assert caught.value.errno == errno.E2BIG


def test_umount_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    mount_api.legacy_mount("none", tmp_path / "target", "tmpfs", 0, "")
    with pytest.raises(OSError) as caught:
        mount_api.umount(tmp_path / "link")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == str(tmp_path / "link")
    mount_api.umount(tmp_path / "target")


def test_what_is_mounted_in_a_private_namespace_is_seen_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("own")

    def inside() -> tuple[list[str], int]:
        mount_api.legacy_mount("none", tmp_path, "tmpfs", 0, "")
        (tmp_path / "file").write_text("x")
        return os.listdir(tmp_path), mount_api.clone_tree(tmp_path)

    names, mount = run_in_private_namespace(inside)
    assert names == ["file"]
    assert os.listdir(tmp_path) == ["own"]
    assert os.listdir(f"/proc/self/fd/{mount}") == ["file"]
    _attach(mount, tmp_path)
    os.close(mount)
    assert os.listdir(tmp_path) == ["file"]
    mount_api.umount(tmp_path)


def test_an_error_of_a_private_namespace_reaches_the_caller() -> None:
    def fail() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        run_in_private_namespace(fail)


def test_mounts_are_not_crossed_or_removed(tmp_path: Path) -> None:
    (tmp_path / "root" / "mnt").mkdir(parents=True)
    (tmp_path / "root" / "file").write_text("")
    mount_api.legacy_mount("none", tmp_path / "root" / "mnt", "tmpfs", 0, "")
    (tmp_path / "root" / "mnt" / "precious").write_text("kept")
    root = os.open(tmp_path / "root", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        open_in_root(root, b"mnt/precious")
    assert caught.value.errno == errno.EXDEV
    fd = open_in_root(root, b"mnt/precious", cross_mounts=True)
    entry = find_mount(tmp_path / "root" / "mnt")
    assert entry is not None
    assert [(holder.pid, holder.use) for holder in find_holders(entry.mount_id)] == [(os.getpid(), "open file")]
    os.close(fd)
    os.close(root)
    with pytest.raises(OSError, match="another file system is mounted") as caught:
        remove_tree(tmp_path / "root")
    assert caught.value.errno == errno.EBUSY
    assert (tmp_path / "root" / "mnt" / "precious").read_text() == "kept"
    mount_api.umount(tmp_path / "root" / "mnt")
