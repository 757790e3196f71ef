"""A file system that can lose its power.

The shutdown ioctl without a log flush drops everything that the file system has not written, as losing power does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.mount_api import umount

__all__ = ["Disk"]

#: EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same number; 2 is "no log flush" for both.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device")


class Disk:
    """A file system in a file, that can lose its power."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._image, self.path = folder / "disk", folder / "mount"
        self.path.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(320 << 20)
        quiet = ["-q", "-F"] if kind == "ext4" else ["-q"]
        subprocess.run([f"mkfs.{kind}", *quiet, self._image], check=True)
        self._mount()

    def cut(self) -> None:
        """Lose the power, and come up again."""
        self.lose_power()
        self.restart()

    def lose_power(self) -> None:
        """Lose everything that is not on the disk; whatever is done from now on fails."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def slow(self, writes: int) -> Iterator[None]:
        """Let the disk do no more than so many writes a second; until it is left, nobody need wait for it."""
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        if not _THROTTLE.exists() or not any(line.endswith(":blkio:/") for line in groups):
            pytest.skip("not in the root of a blkio controller of cgroup v1, which can slow a disk down")
        number = os.stat(self.path).st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        _THROTTLE.write_text(f"{device} {writes}")
        try:
            yield
        finally:
            _THROTTLE.write_text(f"{device} 0")

    def restart(self) -> None:
        self.close()
        if self._is_held():
            # Somebody made a mount namespace meanwhile, and the mount lives on in it: go on from what is on the disk.
            copy = self._image.with_name("copy")
            subprocess.run(["cp", "--sparse=always", self._image, copy], check=True)
            copy.rename(self._image)
        self._mount()

    def _is_held(self) -> bool:
        """Whether the file is still the disk of a file system."""
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # given back meanwhile
                if path.read_text().strip() == str(self._image):
                    return True
        return False

    def close(self) -> None:
        for _ in range(50):
            try:
                umount(self.path)
            except OSError:
                time.sleep(0.1)  # a killed process is still being taken apart
            else:
                return
        umount(self.path)

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._image, self.path], check=True)
