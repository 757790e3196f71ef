"""Mounts through FUSE: their life, what they refuse, and that nothing in them leads out of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from layerfs.errors import MountError
from layerfs.linux.mount_api import umount
from layerfs.linux.mountinfo import find_mount, read_mounts
from layerfs.linux.process import wait_for_end
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.mount.fuse.start import clear_dead, is_dead, start_fuse
from layerfs.mount.option import MountOptions
from layerfs.mount.overlay import mount_directories
from layerfs.union.owner import OwnerMap, Range
from tests.integration.mount.conftest import Image
from tests.union_oracle import errno_of

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

Specification = FuseSpecification


class Mounter:
    """Mounts, and takes everything away again."""

    def __init__(self) -> None:
        self._live: list[tuple[str, int]] = []

    def __call__(self, wanted: FuseSpecification) -> int:
        pid = start_fuse(wanted)[1]
        self._live.append((wanted.target, pid))
        return pid

    def unmount(self) -> None:
        while self._live:
            target, pid = self._live.pop()
            with contextlib.suppress(OSError):
                umount(target, lazy=True)
            assert wait_for_end(pid, 10)


@pytest.fixture
def mount() -> Iterator[Mounter]:
    mounter = Mounter()
    yield mounter
    mounter.unmount()


@pytest.fixture
def wanted(target: Path, lower: Path, upper: Path, work: Path) -> FuseSpecification:
    return FuseSpecification(target=str(target), lowers=(str(lower),), upper=str(upper), work=str(work))


@pytest.mark.needs_overlay
def test_an_image_with_a_writable_layer(mount: Mounter, image: Image, target: Path, upper: Path, work: Path) -> None:
    pid = mount(
        FuseSpecification(
            target=str(target), tree=str(image.tree), devices=tuple(map(str, image.devices)), upper=str(upper),
            work=str(work), source="layerfs:box",
        )
    )  # fmt: skip
    entry = find_mount(target)
    assert entry is not None
    assert (entry.fstype, entry.source) == ("fuse.layerfs", "layerfs:box")
    assert {"nosuid", "nodev"} <= set(entry.options)
    assert (target / "f0").read_text() == "layer 0\n"
    (target / "f0").write_text("changed\n")
    assert (target / "dir/inner").read_text() == "changed\n", "another name of the same file"
    (target / "f1").unlink()
    assert sorted(os.listdir(target)) == ["dir", "f0"]
    umount(target)
    assert wait_for_end(pid, 10)
    # Whoever mounts it next may be the kernel.
    with_kernel = upper.parent / "lower-copy"
    with_kernel.mkdir()
    (with_kernel / "f1").write_text("")
    mount_directories([with_kernel], target, upper=upper, work=work, options=MountOptions())
    assert (target / "f0").read_text() == "changed\n"
    assert sorted(os.listdir(target)) == ["dir", "f0"]
    umount(target)


def test_read_only(mount: Mounter, wanted: FuseSpecification, target: Path) -> None:
    mount(replace(wanted, upper=None, work=None, read_only=True))
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    assert (target / "dir/file").read_text() == "lower\n"


@pytest.mark.parametrize("option", ["", "noatime", "read_only"])
def test_atimes_change_in_the_upper_only(
    mount: Mounter, wanted: FuseSpecification, target: Path, lower: Path, upper: Path, option: str
) -> None:
    (upper / "above").mkdir()
    (upper / "above/file").write_text("upper\n")
    below = [lower, lower / "dir", lower / "dir/file"]
    above = [upper / "above", upper / "above/file"]
    for path in (*below, *above):
        os.utime(path, ns=(10**9, 2 * 10**9))
    pid = mount(replace(wanted, **{option: True}) if option else wanted)  # type: ignore[arg-type]
    if option != "read_only":
        (target / "new").write_text("new\n")
        (target / "file").chmod(0o640)
        for name in ("new", "file"):
            os.utime(target / name, ns=(10**9, 2 * 10**9))
            above.append(upper / name)
    for top, _, names in os.walk(target):
        for name in names:
            Path(top, name).read_text()
    assert [path.stat().st_atime_ns for path in below] == [10**9] * 3
    umount(target)
    assert wait_for_end(pid, 10)
    assert [path.stat().st_atime_ns == 10**9 for path in above] == [bool(option)] * len(above)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowers": ("/nowhere",)}, "/nowhere: No such file or directory"),
        ({"upper": "/nowhere/u"}, "/nowhere/u: No such file or directory"),
        ({"work": "/proc"}, "different file systems"),
        ({"tree": "/etc/passwd", "lowers": ()}, "EROFS"),
    ],
)
def test_a_mount_that_fails_says_why(
    wanted: FuseSpecification, target: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(MountError, match="cannot mount at") as caught:
        start_fuse(replace(wanted, **changes))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert find_mount(target) is None


def test_a_mount_whose_log_cannot_be_written_is_taken_away(wanted: FuseSpecification, target: Path) -> None:
    with pytest.raises(MountError, match="nowhere"):
        start_fuse(wanted, log="/nowhere/fuse.log")
    assert find_mount(target) is None


def test_a_second_mount_of_one_work_directory_is_refused(
    mount: Mounter, wanted: FuseSpecification, tmp_path: Path
) -> None:
    mount(wanted)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(MountError, match="in use by another mount"):
        start_fuse(replace(wanted, target=str(other)))


def test_a_killed_process_leaves_a_mount_that_the_next_one_clears(
    mount: Mounter, wanted: FuseSpecification, target: Path
) -> None:
    pid = mount(wanted)
    fd = os.open(target / "kept", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"kept")
    os.fsync(fd)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, 10)
    with contextlib.suppress(OSError):
        os.close(fd)
    with pytest.raises(OSError, match="not connected") as caught:
        os.listdir(target)
    assert caught.value.errno == errno.ENOTCONN
    assert is_dead(target)
    clear_dead(target)
    assert find_mount(target) is None
    clear_dead(target)
    mount(wanted)
    assert (target / "kept").read_text() == "kept"


def test_a_signal_detaches_and_lets_users_finish(mount: Mounter, wanted: FuseSpecification, target: Path) -> None:
    pid = mount(wanted)
    fd = os.open(target / "file", os.O_RDWR)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while find_mount(target) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.pwrite(fd, b"still", 0)
    assert os.pread(fd, 10, 0) == b"still\n"
    os.close(fd)
    assert wait_for_end(pid, 10)


def test_xattrs_of_links_are_the_links_own(
    mount: Mounter, wanted: FuseSpecification, target: Path, tmp_path: Path, lower: Path
) -> None:
    # A union that sets them by path changes the file that the link leads to, outside of the mount.
    outside = tmp_path / "outside"
    outside.write_text("")
    for name in ("below", "above"):
        if name == "below":
            (lower / name).symlink_to(outside)
    mount(wanted)
    (target / "above").symlink_to(outside)
    (target / "inside").symlink_to(target / "file")
    for name in ("below", "above", "inside"):
        os.setxattr(target / name, "trusted.mark", b"1", follow_symlinks=False)
        assert os.getxattr(target / name, "trusted.mark", follow_symlinks=False) == b"1"
        os.chown(target / name, 7, 7, follow_symlinks=False)
        os.utime(target / name, ns=(1, 1), follow_symlinks=False)
        assert os.lstat(target / name).st_uid == 7
        os.removexattr(target / name, "trusted.mark", follow_symlinks=False)
        (target / name).rename(target / f"{name}.moved")
    assert os.listxattr(outside) == []
    assert (outside.stat().st_uid, os.listxattr(target / "file")) == (0, [])


def test_default_acls_and_set_group_id_are_inherited(mount: Mounter, wanted: FuseSpecification, target: Path) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is not installed")
    mount(wanted)
    subprocess.run(["setfacl", "-d", "-m", "u:33:rwx,g::rwx,o::---", target / "dir"], check=True)
    os.chown(target / "dir", 0, 44)
    (target / "dir").chmod(0o2775)
    old = os.umask(0o077)
    try:
        for name in ("new", "file"):  # the second one takes the place of a whiteout
            if name == "file":
                (target / "dir/file").unlink()
            (target / "dir" / name).write_text("")
            acl = subprocess.run(
                ["getfacl", "-cn", target / "dir" / name], check=True, capture_output=True, text=True
            ).stdout.split()
            assert "user:33:rwx" in acl
            assert "mask::rw-" in acl, "the umask does not count where a default ACL does"
            assert (target / "dir" / name).stat().st_gid == 44
        (target / "dir/sub").mkdir()
        assert stat.S_IMODE((target / "dir/sub").stat().st_mode) & 0o2000
        (target / "plain").write_text("")
        assert stat.S_IMODE((target / "plain").stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_shared_mappings_and_holes(mount: Mounter, wanted: FuseSpecification, target: Path, lower: Path) -> None:
    import mmap

    with open(lower / "sparse", "wb") as made:
        made.truncate(50 << 20)
        made.seek(25 << 20)
        made.write(b"middle")
    mount(wanted)
    with open(target / "sparse", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        assert mapping[25 << 20 : (25 << 20) + 6] == b"middle"
        mapping[0:5] = b"start"
        mapping.flush()
    with open(target / "sparse", "rb") as again:
        assert again.read(5) == b"start"
    status = (Path(wanted.upper or "") / "sparse").stat()
    assert status.st_size == 50 << 20
    assert status.st_blocks * 512 < 4 << 20, "holes stay holes"


def test_a_full_disk(mount: Mounter, wanted: FuseSpecification, target: Path, tmp_path: Path, lower: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        (small / "u").mkdir()
        (small / "w").mkdir()
        (lower / "big").write_bytes(b"b" * (3 << 20))
        mount(replace(wanted, upper=str(small / "u"), work=str(small / "w")))
        with pytest.raises(OSError, match="No space"), open(target / "big", "r+b") as file:
            file.write(b"x")
        assert os.listdir(small / "u") == []
        assert os.listdir(small / "w/work") == []
        assert (target / "big").read_bytes() == b"b" * (3 << 20)
        with pytest.raises(OSError, match="No space"):
            (target / "new").write_bytes(b"n" * (2 << 20))
        (target / "new").unlink()
        (target / "small").write_text("fits")
        mount.unmount()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_directory_with_many_names_under_load(
    mount: Mounter, wanted: FuseSpecification, target: Path, lower: Path
) -> None:
    many = lower / "many"
    many.mkdir()
    for number in range(20_000):
        os.close(os.open(many / f"stay{number}", os.O_CREAT))
    mount(wanted)
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            (target / "many" / f"churn{number}").write_text("")
            (target / "many" / f"churn{number}").unlink()
            number += 1

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(3):
            names = [name for name in os.listdir(target / "many") if name.startswith("stay")]
            assert len(names) == len(set(names)) == 20_000
    finally:
        stop.set()
        worker.join()
    with os.scandir(target / "many") as entries:
        numbers = {entry.name: entry.inode() for entry in entries}
    for name in ("stay0", "stay19999"):
        fd = os.open(target / "many" / name, os.O_RDONLY)
        assert os.fstat(fd).st_ino == os.lstat(target / "many" / name).st_ino == numbers[name]
        os.close(fd)


def test_owners_can_be_mapped(mount: Mounter, wanted: FuseSpecification, target: Path, lower: Path) -> None:
    os.chown(lower / "file", 1005, 1006)
    owners = OwnerMap((Range(0, 1000, 10),), (Range(0, 1000, 10),))
    mount(replace(wanted, owners=owners))
    assert ((target / "file").stat().st_uid, (target / "file").stat().st_gid) == (5, 6)
    (target / "new").write_text("")
    os.chown(target / "new", 3, 4)
    new = (Path(wanted.upper or "") / "new").stat()
    assert (new.st_uid, new.st_gid) == (1003, 1004)


def test_those_whom_acls_name_are_mapped_too(
    mount: Mounter, wanted: FuseSpecification, target: Path, lower: Path
) -> None:
    subprocess.run(["setfacl", "-m", "u:1005:r,g:1006:r,u:5:r,u:6:w", lower / "file"], check=True)
    mount(replace(wanted, owners=OwnerMap((Range(0, 1000, 10),), (Range(0, 1000, 10),))))
    # Those whom no range has are left out: several would be one.
    assert _acl(target / "file") == {"user::rw-", "user:5:r--", "group::r--", "group:6:r--", "mask::rw-", "other::r--"}
    (target / "new").write_text("")
    subprocess.run(["setfacl", "-m", "u:3:r,g:4:w", target / "new"], check=True)
    assert {"user:3:r--", "group:4:-w-"} <= _acl(target / "new")
    assert {"user:1003:r--", "group:1004:-w-"} <= _acl(Path(wanted.upper or "") / "new")
    done = subprocess.run(["setfacl", "-m", "u:77:r", target / "new"], check=False, capture_output=True, text=True)
    assert "Invalid argument" in done.stderr


def _acl(path: Path) -> set[str]:
    done = subprocess.run(["getfacl", "-n", "-p", "-c", path], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def _command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("layerfs-fuse")
    return subprocess.run([program, *words], check=False, capture_output=True, text=True)


def test_the_command_that_replaces_fuse_overlayfs(target: Path, lower: Path, upper: Path, work: Path) -> None:
    second = lower.parent / "with,comma:colon"
    second.mkdir()
    (second / "extra").write_text("")
    escaped = str(second).replace(",", "\\,").replace(":", "\\:")
    done = _command(
        "-o", f"lowerdir={lower}:{escaped},upperdir={upper},workdir={work},volatile,static_nlink,timeout=5", "-o",
        "nodev,unheard=1", target,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "layerfs-fuse: warning: ignored: unheard\n")
    assert sorted(os.listdir(target)) == ["dir", "extra", "file"]
    assert (target / "dir").stat().st_nlink == 1
    (target / "new").write_text("n")
    entry = find_mount(target)
    assert entry is not None
    assert "nodev" in entry.options
    assert "nosuid" not in entry.options
    umount(target)
    assert (upper / "new").read_text() == "n"


def test_the_command_says_what_is_wrong(target: Path, lower: Path) -> None:
    for words, code, message in (
        (["-o", "lowerdir=/nowhere", target], 1, "layerfs-fuse: error: /nowhere: No such file or directory\n"),
        (["-o", "ro", target], 2, "layerfs-fuse: error: option lowerdir is missing\n"),
        (["-o", f"lowerdir={lower},upperdir=/tmp", target], 2,
         "layerfs-fuse: error: upperdir and workdir go together\n"),
        (["-o", f"lowerdir={lower}", lower / "file"], 2, f"layerfs-fuse: error: {lower}/file is not a directory\n"),
        (["-o", f"lowerdir={lower},uidmapping=1:2", target], 2,
         "layerfs-fuse: error: a mapping is STORED:SHOWN:COUNT, not 1:2\n"),
        (["-o", f"lowerdir={lower},squash_to_uid=x", target], 2,
         "layerfs-fuse: error: squash_to_uid needs a number up to 4294967294\n"),
        (["-o", f"lowerdir={lower},squash_to_gid=4294967295", target], 2,
         "layerfs-fuse: error: squash_to_gid needs a number up to 4294967294\n"),
        (["-o", f"lowerdir={lower},uidmapping=0:4294967290:100", target], 2,
         "layerfs-fuse: error: a mapping ends at 4294967294, which 0:4294967290:100 passes\n"),
        (["-o", f"lowerdir={lower},timeout=nan", target], 2,
         "layerfs-fuse: error: timeout is not between 0 and 31622400 seconds: nan\n"),
        (["-o", f"lowerdir={lower},upperdir={target},workdir={target}", target], 2,
         f"layerfs-fuse: error: upperdir {target} and {target} overlap\n"),
    ):  # fmt: skip
        done = _command(*words)  # type: ignore[arg-type]
        assert (done.returncode, done.stderr) == (code, message)
    assert find_mount(target) is None


def test_the_foreground_tells_systemd(target: Path, lower: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        program = Path(sys.executable).with_name("layerfs-fuse")
        with subprocess.Popen(
            [program, "-f", "-o", f"lowerdir={lower}", target],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        ) as process:
            assert listener.recv(100) == b"READY=1"
            assert (target / "file").read_text() == "other\n"
            process.send_signal(signal.SIGTERM)
            assert listener.recv(100) == b"STOPPING=1"
            assert process.wait(20) == 0
    assert not any(entry.target == str(target) for entry in read_mounts())


def test_few_descriptors_are_enough(lower: Path, upper: Path, work: Path, target: Path) -> None:
    for number in range(300):
        (lower / f"d{number}").mkdir()
        (lower / f"d{number}/file").write_text(f"{number}")
    command = Path(sys.executable).with_name("layerfs-fuse")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["sh", "-c", 'ulimit -n 200; exec "$0" -o "$1" "$2"', command, options, target], check=True)
    try:
        for number in range(300):
            assert (target / f"d{number}/file").read_text() == f"{number}"
        for number in range(0, 300, 3):
            with (target / f"d{number}/file").open("a") as file:
                file.write("more")
        # More unlinked files than it can hold: some stay, none is lost, and it goes on.
        opened = [(target / f"d{number}/file").open("r+") for number in range(300)]
        for file in opened:
            file.write("changed")
            file.flush()
        answers = [errno_of((target / f"d{number}/file").unlink) for number in range(300)]
        for file in opened:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 7, 0) == b"changed"
        for file in opened:
            file.close()
        assert set(answers) == {0, errno.EMFILE}
        time.sleep(0.2)  # until the kernel has let go of them
        (target / "new").write_text("new")
        assert (target / "dir/file").read_text() == "lower\n"
    finally:
        umount(target)


@pytest.mark.parametrize("moved", [False, True])
def test_a_signal_takes_nothing_else_away(
    mount: Mounter, wanted: FuseSpecification, target: Path, tmp_path: Path, moved: bool
) -> None:
    pid = mount(wanted)
    if moved:
        place = tmp_path / "moved"
        place.mkdir()
        done = subprocess.run(["mount", "--move", target, place], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a mount cannot be moved here: {done.stderr.strip()}")
        os.kill(pid, signal.SIGTERM)
        assert wait_for_end(pid, 10)
        assert find_mount(place) is None
        return
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)
    (target / "above").write_text("")
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    assert (target / "above").exists()
    umount(target)
    assert (target / "file").read_text() == "other\n"
