"""A power cut after a copy-up: the copy has its bytes, or the file of the image shows as before."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.linux.mount_api import umount
from layerfs.linux.process import wait_for_end
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.mount.fuse.start import start_fuse
from tests.image_builder import noise
from tests.power_cut import Disk

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

#: Small ones are copied by one write, large ones by the kernel; enough small ones that some wait when others go.
SIZES = {f"small{number}": 10_000 + number for number in range(300)} | {"middle": 300_000, "large": 9_000_000}


def _sync(path: Path) -> None:
    """Make a new file durable, and with it, in one commit of the journal, every name that was made before."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL)
    try:
        os.write(fd, b"x")
        os.fsync(fd)
    finally:
        os.close(fd)


def _later(disk: Disk, _target: Path) -> None:
    """Somebody else makes something durable, once the copies have had their second."""
    time.sleep(2.5)
    _sync(disk.path / "other")


def _through_the_mount(_disk: Disk, target: Path) -> None:
    """The container makes something durable at once."""
    _sync(target / "other")


def _directory_through_the_mount(_disk: Disk, target: Path) -> None:
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@pytest.fixture
def places(disk: Disk, tmp_path: Path) -> FuseSpecification:
    """A lower, a target, and an upper and a work directory on the disk."""
    lower, target = tmp_path / "lower", tmp_path / "target"
    upper, work = disk.path / "upper", disk.path / "work"
    for directory in (lower, target, upper, work):
        directory.mkdir()
    return FuseSpecification(target=str(target), lowers=(str(lower),), upper=str(upper), work=str(work))


@contextlib.contextmanager
def _mounted(wanted: FuseSpecification) -> Iterator[int]:
    pid = start_fuse(wanted)[1]
    try:
        yield pid
    finally:
        with contextlib.suppress(OSError):
            umount(wanted.target, lazy=True)
        assert wait_for_end(pid, 10)


def _fill(lower: str, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        Path(lower, name).write_bytes(noise(size, name))
    os.sync()


def _damaged(upper: str, sizes: dict[str, int]) -> list[str]:
    """Return the copies that are not what they were copied from, after making sure that all are there."""
    copies = sorted(path.name for path in Path(upper).iterdir() if path.name in sizes)
    assert copies == sorted(sizes)
    return [name for name in copies if Path(upper, name).read_bytes() != noise(sizes[name], name)]


@pytest.mark.parametrize("commit", [_later, _through_the_mount, _directory_through_the_mount])
def test_a_copy_is_not_empty(disk: Disk, places: FuseSpecification, commit: Callable[[Disk, Path], None]) -> None:
    _fill(places.lowers[0], SIZES)
    with _mounted(places):
        for name in SIZES:
            os.chmod(f"{places.target}/{name}", 0o600)
        commit(disk, Path(places.target))
        disk.lose_power()
    disk.restart()
    assert _damaged(str(places.upper), SIZES) == []


@pytest.mark.parametrize("delay", [0.0, 1.3])
def test_what_is_still_on_its_way_is_waited_for(disk: Disk, places: FuseSpecification, delay: float) -> None:
    """After 1.3 seconds the copies are sent off, but such a disk has hardly begun with them."""
    sizes = {f"small{number}": 10_000 + number for number in range(60)}
    _fill(places.lowers[0], sizes)
    with _mounted(places), disk.slow(40):
        for name in sizes:
            os.chmod(f"{places.target}/{name}", 0o600)
        time.sleep(delay)
        _directory_through_the_mount(disk, Path(places.target))
        disk.lose_power()
    disk.restart()
    assert _damaged(str(places.upper), sizes) == []


def test_a_slow_disk_does_not_keep_the_process(disk: Disk, places: FuseSpecification) -> None:
    _fill(places.lowers[0], {str(number): 10_000 for number in range(200)})
    with _mounted(places) as pid, disk.slow(10):
        for number in range(200):
            os.chmod(f"{places.target}/{number}", 0o600)
        umount(places.target)
        assert wait_for_end(pid, 8)


def test_the_space_of_a_copy_that_is_removed_can_be_used_at_once(tmp_path: Path) -> None:
    small, lower, target = tmp_path / "small", tmp_path / "lower", tmp_path / "target"
    for directory in (small, lower, target):
        directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", small], check=True)
    try:
        upper, work = small / "upper", small / "work"
        upper.mkdir()
        work.mkdir()
        _fill(str(lower), {"big": 20 << 20})
        wanted = FuseSpecification(target=str(target), lowers=(str(lower),), upper=str(upper), work=str(work))
        with _mounted(wanted):
            os.chmod(target / "big", 0o600)
            os.unlink(target / "big")
            (target / "new").write_bytes(bytes(20 << 20))
    finally:
        umount(small)
