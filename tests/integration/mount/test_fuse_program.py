"""``layerfs-fuse`` with what containers/storage and others hand to it: options, old uppers, odd surroundings."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from layerfs.linux.mount_api import umount
from layerfs.linux.mountinfo import find_mount, read_mounts
from layerfs.linux.process import wait_for_end

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

_PROGRAM = Path(sys.executable).with_name("layerfs-fuse")


@contextmanager
def served(target: Path, options: str) -> Iterator[Path]:
    """A mount whose server is ended for good, whatever became of it."""
    target.mkdir(exist_ok=True)
    with subprocess.Popen(
        [_PROGRAM, "-f", "-o", options, target], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as server:
        try:
            for _ in range(500):
                if find_mount(target) is not None:
                    break
                if server.poll() is not None:
                    assert server.stderr is not None
                    raise OSError(server.returncode, server.stderr.read().decode())
                with suppress(subprocess.TimeoutExpired):
                    server.wait(0.02)
            yield target
        finally:
            with suppress(OSError):
                umount(target, lazy=True)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGKILL)
                raise


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.mark.parametrize("colon", ["", ":"])
def test_mappings_are_those_of_fuse_overlayfs(target: Path, lower: Path, upper: Path, work: Path, colon: str) -> None:
    os.chown(lower / "file", 5, 6)
    os.chown(lower / "dir", 70_000, 0)
    mapping = f"{colon}0:100000:65536"
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={work},uidmapping={mapping},gidmapping={mapping}"):
        assert owner(target / "file") == (100_005, 100_006)
        assert owner(target / "dir") == (65534, 100_000)
        assert owner(target) == (100_000, 100_000)
        os.chown(target / "file", 100_007, -1)
        assert owner(target / "file") == (100_007, 100_006)
        os.chown(target, 100_008, 100_008)
        subprocess.run(["touch", "made"], check=True, cwd=target, user=100_008, group=100_008)
        assert owner(target / "made") == (100_008, 100_008)
    assert owner(upper / "file") == (7, 6)
    assert owner(upper / "made") == (8, 8)


@pytest.mark.parametrize(("number", "xattr"), [(1, "security.fuseoverlayfs"), (2, "user.containers")])
def test_owners_and_modes_in_an_xattr(
    target: Path, lower: Path, upper: Path, work: Path, number: int, xattr: str
) -> None:
    name = f"{xattr}.override_stat"
    os.setxattr(lower / "file", name, b"7:8:4640")
    os.setxattr(lower / "dir", name, b"9:9:1700:dir")
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={work},xattr_permissions={number}"):
        assert ((target / "file").stat().st_mode, owner(target / "file")) == (stat.S_IFREG | 0o4640, (7, 8))
        assert ((target / "dir").stat().st_mode, owner(target / "dir")) == (stat.S_IFDIR | 0o1700, (9, 9))
        assert os.listxattr(target / "file") == []
        os.chmod(target / "file", 0o600)
        (target / "made").touch(0o400)
        os.chown(target / "made", 3, 4)
        assert ((target / "file").stat().st_mode, owner(target / "file")) == (stat.S_IFREG | 0o600, (7, 8))
        assert ((target / "made").stat().st_mode, owner(target / "made")) == (stat.S_IFREG | 0o400, (3, 4))
    assert os.getxattr(upper / "file", name) == b"7:8:600"
    assert os.getxattr(upper / "made", name) == b"3:4:400"
    assert owner(upper / "made") == (0, 0)


@pytest.mark.needs_overlay  # the file system takes whiteouts
def test_acls_of_users_that_a_namespace_does_not_have(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Their entries are lost, and all else works: nobody in the namespace could be meant by them."""
    subprocess.run(["setfacl", "-d", "-m", "u:33:rwx", lower / "dir"], check=True)
    subprocess.run(["setfacl", "-m", "u:33:rw,g::r", lower / "file"], check=True)
    os.mknod(upper / "over", stat.S_IFCHR, 0)
    subprocess.run(["setfacl", "-d", "-m", "u:33:rwx", upper], check=True)
    for path in (lower.parent, lower.parent.parent):
        path.chmod(0o755)
    script = (
        f'set -e; {_PROGRAM} -o "lowerdir={lower},upperdir={upper},workdir={work}" {target}; cd {target}\n'
        "trap 'cd /; umount -l \"$OLDPWD\"' EXIT\n"
        "echo new >dir/new; echo more >>file; chmod 640 dir; echo over >over; stat -c %a file dir; getfacl -cp file"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["664", "640", "user::rw-", "group::r--", "mask::rw-", "other::r--"], done.stdout
    assert (upper / "over").read_text() == "over\n"


@pytest.mark.needs_overlay
def test_whiteouts_are_links_to_one(lower: Path, upper: Path, work: Path, target: Path) -> None:
    for number in range(5):
        (lower / f"gone{number}").write_text("x")
        (lower / f"empty{number}").mkdir()
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={work}"):
        (target / "gone0").write_text("copied up")
        for number in range(5):
            (target / f"gone{number}").unlink()
            (target / f"empty{number}").rmdir()
        (target / "gone1").write_text("new")
        assert {path.name for path in target.iterdir()} == {"dir", "file", "gone1"}
    found = [path.stat() for path in upper.iterdir() if path.name != "gone1"]
    assert {(stat.S_ISCHR(status.st_mode), status.st_rdev) for status in found} == {(True, 0)}
    assert {(status.st_ino, status.st_nlink) for status in found} == {(found[0].st_ino, 9)}
    assert not list((work / "work").iterdir())


def test_a_whiteout_that_can_have_no_more_links(lower: Path, tmp_path: Path, target: Path) -> None:
    """As on ext4, where it is 65,000: so many are on the disk from an earlier mount, in effect."""
    upper, place = tmp_path / "many", tmp_path / "place"
    upper.mkdir()
    place.mkdir()
    for number in range(20):
        (lower / f"gone{number}").write_text("x")
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={place}"):
        (target / "gone0").unlink()
        (kept,) = (place / "work").iterdir()
        extra = tmp_path / "extra"
        extra.mkdir()
        with suppress(OSError):
            for number in range(70_000):
                os.link(kept, extra / str(number))
        for number in range(1, 10):
            (target / f"gone{number}").unlink()
        for path in (place / "work").iterdir():
            path.unlink()
        for number in range(10, 20):
            (target / f"gone{number}").unlink()
        assert not [path for path in target.iterdir() if path.name.startswith("gone")]
    shutil.rmtree(extra)


def test_nothing_of_a_layer_goes_from_a_directory_that_is_append_only(
    lower: Path, upper: Path, work: Path, target: Path
) -> None:
    (lower / "dir/empty").mkdir()
    (lower / "dir/one").write_text("x")
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={work}"):
        (target / "dir/one").unlink()
        subprocess.run(["chattr", "+a", target / "dir"], check=True)
        try:
            with pytest.raises(PermissionError):
                (target / "dir/file").unlink()
            with pytest.raises(PermissionError):
                (target / "dir/empty").rmdir()
            (target / "dir/new").write_text("new")
            with pytest.raises(PermissionError):
                (target / "dir/new").unlink()
        finally:
            subprocess.run(["chattr", "-a", target / "dir"], check=True)
        (target / "dir/file").unlink()
        (target / "dir/empty").rmdir()


def test_trusted_xattrs_are_shown_to_who_may_read_them(lower: Path, upper: Path, work: Path, target: Path) -> None:
    os.setxattr(lower / "file", "trusted.mine", b"1")
    os.setxattr(lower / "file", "user.mine", b"1")
    listing = f"exec {sys.executable} -c 'import os; print(*sorted(os.listxattr(\"{target}/file\")))'"
    shells = {
        "": "trusted.mine user.mine",
        "capsh --drop=cap_sys_admin -- -c": "user.mine",
        "unshare -Ur sh -c": "user.mine",
    }
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={work}"):
        for shell, shown in shells.items():
            command = [*(shell.split() or ["sh", "-c"]), listing]
            assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == shown, shell


def test_a_dead_mount_is_cleared_though_the_kernel_remembers_it(lower: Path, target: Path) -> None:
    command = [str(_PROGRAM), "-o", f"lowerdir={lower}", str(target)]
    subprocess.run(command, check=True)
    (server,) = _servers(target)
    os.stat(target)
    os.kill(server, signal.SIGKILL)
    assert wait_for_end(server, 10)
    os.stat(target)  # which says that all is well
    subprocess.run(command, check=True)
    (server,) = _servers(target)
    assert (target / "file").exists()
    assert [entry.target for entry in read_mounts()].count(str(target)) == 1
    umount(target)
    assert wait_for_end(server, 10)


def _servers(target: Path) -> list[int]:
    """Return the processes that were started to mount there and run."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(target).encode() in words:
                found.append(int(pid))
    return found


def test_an_acl_sets_the_mode_that_is_kept_beside_the_file(target: Path, lower: Path, upper: Path, work: Path) -> None:
    plain = target.parent / "plain"
    subprocess.run(["cp", "-a", lower, plain], check=True)
    with served(target, f"lowerdir={lower},upperdir={upper},workdir={work},xattr_permissions=2"):
        for place in (target, plain):
            os.chmod(place / "dir", 0o755)
            os.chmod(place / "dir/file", 0o4644)
            subprocess.run(["cp", "-a", place / "dir", place / "copy"], check=True)
            (place / "new").touch(0o640)
            subprocess.run(["setfacl", "-m", "u:0:rwx,g::rx,o::r", place / "new"], check=True)
            subprocess.run(["setfacl", "-m", "u::rw,g::r,o::-", place / "file"], check=True)
        for name in ("dir", "dir/file", "copy", "copy/file", "new", "file"):
            assert (target / name).stat().st_mode == (plain / name).stat().st_mode, name
        shown = [
            subprocess.run(["getfacl", "-c", place / "new"], check=True, capture_output=True).stdout
            for place in (target, plain)
        ]
        assert shown[0] == shown[1]
        # The real file stays readable for its real owner, and nobody sees that.
        for place in (target, plain):
            (place / "kept").touch(0o444)
            subprocess.run(["setfacl", "-m", "u::r,u:1234:r", place / "kept"], check=True)
            subprocess.run(["cp", "-a", place / "kept", place / "again"], check=True)
        for name in ("kept", "again"):
            assert (target / name).stat().st_mode == (plain / name).stat().st_mode
            acl = "system.posix_acl_access"
            assert os.getxattr(target / name, acl) == os.getxattr(plain / name, acl)
            assert (upper / name).stat().st_mode & 0o600 == 0o600
        with pytest.raises(OSError, match="Invalid") as caught:
            os.setxattr(target / "new", "system.posix_acl_access", b"\2\0\0\0junk")
        assert caught.value.errno == errno.EINVAL


@pytest.mark.needs_overlay
@pytest.mark.parametrize("through", ["", ",pyfuse3"])
def test_what_other_options_of_the_kernel_left_in_an_upper_is_refused(
    target: Path, lower: Path, upper: Path, work: Path, through: str
) -> None:
    target.mkdir(exist_ok=True)
    places = f"lowerdir={lower},upperdir={upper},workdir={work}"
    (lower / "other").mkdir()
    (lower / "other/inner").write_text("i")
    kernel = ["mount", "-t", "overlay", "-o", f"{places},metacopy=on,redirect_dir=on", "overlay", str(target)]
    subprocess.run(kernel, check=True)
    os.chmod(target / "file", 0o600)
    os.rename(target / "other", target / "moved")
    umount(target)
    with served(target, places + through):
        with pytest.raises(PermissionError):
            (target / "file").read_bytes()
        with pytest.raises(PermissionError):
            (target / "file").write_bytes(b"x")
        with pytest.raises(PermissionError):
            (target / "moved").stat()
        with pytest.raises(PermissionError):
            os.rmdir(target / "moved")
        for _ in range(4):
            assert sorted(os.listdir(target)) == ["dir", "file", *(["moved"] if not through else [])]
            os.utime(target)
        assert (target / "dir/file").read_text() == "lower\n"
    subprocess.run(kernel, check=True)
    assert (target / "file").read_text() == "other\n"
    assert (target / "moved/inner").read_text() == "i"
    umount(target)


@pytest.mark.needs_overlay
def test_an_upper_that_may_have_lost_something_is_refused(target: Path, lower: Path, upper: Path, work: Path) -> None:
    places = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", f"{places},volatile", "overlay", target], check=True)
    umount(target)
    with pytest.raises(OSError, match="work/incompat/volatile"), served(target, places):
        pass
    shutil.rmtree(work / "work/incompat/volatile")
    with served(target, places):
        assert (target / "file").exists()


def test_a_lower_that_contains_the_mount(tmp_path: Path, upper: Path, work: Path) -> None:
    """A server that looked into its own mount would wait for itself."""
    outer = tmp_path / "outer"
    target = outer / "below/target"
    target.mkdir(parents=True)
    (target / "covered").touch()
    subprocess.run(["mount", "-t", "tmpfs", "other", outer / "below"], check=True)
    try:
        target.mkdir()
        with served(target, f"lowerdir={outer},upperdir={upper},workdir={work}"):
            found = subprocess.run(["find", target], check=True, capture_output=True, text=True, timeout=20)
            # As for overlayfs, what is mounted below a layer is no part of it.
            assert found.stdout.splitlines() == [
                str(target), *(f"{target}/{name}" for name in ("below", "below/target", "below/target/covered"))
            ]  # fmt: skip
    finally:
        umount(outer / "below")


def test_devices_need_an_option(target: Path, lower: Path) -> None:
    for options, words in (
        ("", {"nodev"}), (",dev", set()), (",nosuid,nodev,dev,suid", set()), (",dev,nodev,nosuid", {"nodev", "nosuid"}),
        (",noexec,exec", {"nodev"}), (",noexec", {"nodev", "noexec"}),
    ):  # fmt: skip
        with served(target, f"lowerdir={lower}{options}"):
            entry = find_mount(target)
            assert entry is not None
            assert {word for word in entry.options if word.startswith("no") and "atime" not in word} == words


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_caller_that_has_closed_its_streams(target: Path, lower: Path, upper: Path, work: Path, closed: str) -> None:
    command = f'exec "$@" {closed}'
    places = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["sh", "-c", command, "sh", _PROGRAM, "-o", places, target], check=True, timeout=30)
    entry = find_mount(target)
    assert entry is not None
    try:
        assert (target / "file").read_text() == "other\n"
        (target / "new").write_text("n")
        # The locks are held: nobody else may have the upper.
        again = subprocess.run([_PROGRAM, "-o", places, target.parent], check=False, capture_output=True, text=True)
        assert "in use by another mount" in again.stderr
    finally:
        server = next(
            int(name) for name in os.listdir("/proc")
            if name.isdigit() and str(target).encode() in _command_line(name).split(b"\0")
        )  # fmt: skip
        umount(target)
        assert wait_for_end(server, 10)


def _command_line(name: str) -> bytes:
    try:
        return Path("/proc", name, "cmdline").read_bytes()
    except OSError:
        return b""
