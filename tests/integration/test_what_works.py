"""What this machine can do, found out by other means than the code's own.

Tests ask the code under test what works here: one that always said no would skip them all, and nobody would notice.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.linux.mount_namespaces import foreign_overlays
from layerfs.linux.probe import feature
from layerfs.union.upper import Upper

#: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, SYS_ADMIN, MKNOD (linux/capability.h).
_NEEDED = sum(1 << number for number in (0, 1, 2, 3, 21, 27))

#: Its inode number, PROC_PID_INIT_INO of linux/proc_ns.h.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


def _lacks() -> str | None:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if int(fields["CapEff"], 16) & _NEEDED != _NEEDED:
        return "not root with what root usually may"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return "in a user namespace"
    return None


pytestmark = pytest.mark.skipif(_lacks() is not None, reason=str(_lacks()))


def test_features() -> None:
    known = Path("/proc/filesystems").read_text().split()
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    expected = {"privilege", "trusted-xattrs", "mount-api"}
    expected |= {name for name in ("overlay", "erofs", "fuse") if name in known}
    if release >= (6, 12):
        expected |= {f"{name}-{rest}" for name, rest in (("erofs", "file"), ("overlay", "lower-fd")) if name in known}
    assert {name for name in expected if not feature(name).usable} == set()


def test_mounts_of_other_namespaces_are_told() -> None:
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 18):
        pytest.skip("this kernel may not tell them")
    if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
        pytest.skip("they are told to nobody in another PID namespace than the first")
    list(foreign_overlays())


def test_an_upper_directory(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    try:
        fd, place = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE), os.open(tmp_path, os.O_PATH)
        os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=place, follow_symlinks=True)
        os.close(fd)
        os.close(place)
        os.mknod(tmp_path / "whiteout", 0o020000, 0)
        os.setxattr(tmp_path / "named", "trusted.test", b"1")
    except OSError as error:
        pytest.skip(f"the file system of {tmp_path}: {error.strerror}")
    upper = Upper(str(tmp_path / "upper"), str(tmp_path / "work"), b"trusted.overlay.")
    try:
        assert upper.plain_whiteouts
        assert upper.nameless
        assert upper.override is None
    finally:
        upper.close()
