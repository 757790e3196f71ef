"""A power cut after a copy-up: the copy has its bytes, or the file of the image shows as before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
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


@pytest.mark.parametrize("commit", [_later, _through_the_mount, _directory_through_the_mount])
def test_a_copy_is_not_empty(disk: Disk, tmp_path: Path, commit: Callable[[Disk, Path], None]) -> None:
    lower, target = tmp_path / "lower", tmp_path / "target"
    upper, work = disk.path / "upper", disk.path / "work"
    for directory in (lower, target, upper, work):
        directory.mkdir()
    for name, size in SIZES.items():
        (lower / name).write_bytes(noise(size, name))
    os.sync()
    wanted = FuseSpecification(target=str(target), lowers=(str(lower),), upper=str(upper), work=str(work))
    pid = start_fuse(wanted)[1]
    try:
        for name in SIZES:
            os.chmod(target / name, 0o600)
        commit(disk, target)
        disk.lose_power()
    finally:
        with contextlib.suppress(OSError):
            umount(target, lazy=True)
        assert wait_for_end(pid, 10)
    disk.restart()
    copies = sorted(path.name for path in upper.iterdir() if path.name in SIZES)
    assert copies == sorted(SIZES)
    assert [name for name in copies if (upper / name).read_bytes() != noise(SIZES[name], name)] == []
