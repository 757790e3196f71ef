"""The kernel backend on the running kernel: what is mounted, what is visible, what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.errors import BackendUnavailable, Conflict, IntegrityError, MountError
from layerfs.linux import mount_api, probe
from layerfs.linux.mountinfo import MountEntry, find_upper_mount, read_mounts
from layerfs.mount import detached, overlay
from layerfs.mount.option import MountOptions
from layerfs.mount.overlay import mount_directories, mount_merged
from layerfs.mount.unmount import unmount
from tests.integration.mount.conftest import Image, make_image

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.skipif(not probe.feature("privilege").usable, reason="needs CAP_SYS_ADMIN"),
]
needs_erofs = pytest.mark.skipif(
    not probe.feature("erofs-file").usable, reason=f"erofs: {probe.feature('erofs-file').reason}"
)


def _entry(number: int) -> MountEntry:
    (found,) = [entry for entry in read_mounts() if entry.mount_id == number]
    return found


@needs_erofs
def test_an_image_alone_is_read_only(image: Image, target: Path) -> None:
    before = len(read_mounts())
    number = mount_merged(image.tree, image.devices, target, read_only=True)
    entry = _entry(number)
    assert (entry.target, entry.fstype) == (str(target), "erofs")
    assert {"ro", "nosuid", "nodev"} <= set(entry.options)
    assert len(read_mounts()) == before + 1
    assert (target / "f1").read_text() == "layer 1\n"
    assert (target / "f1").stat().st_mtime_ns == 1_000_000_000_123_456_789
    assert (target / "dir" / "inner").stat().st_ino == (target / "f0").stat().st_ino
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    unmount(target, mount_id=number)
    assert list(target.iterdir()) == []


@needs_erofs
def test_a_writable_container_continues_where_it_was(image: Image, target: Path, upper: Path, work: Path) -> None:
    before = len(read_mounts())
    number = mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    assert len(read_mounts()) == before + 1
    entry = _entry(number)
    assert (entry.fstype, entry.source) == ("overlay", "layerfs")
    assert entry.option("upperdir") == str(upper)
    (target / "new").write_text("new")
    (target / "f0").write_text("changed")
    (target / "f1").unlink()
    unmount(target)
    assert stat.S_ISCHR(os.lstat(upper / "f1").st_mode)
    mount_merged(image.tree, image.devices, target, upper=upper, work=work, read_only=True)
    assert sorted(path.name for path in target.iterdir()) == ["dir", "f0", "new"]
    assert (target / "f0").read_text() == "changed"
    with pytest.raises(OSError, match="Read-only"):
        (target / "more").write_text("")
    unmount(target)


@needs_erofs
def test_the_upper_is_a_plain_changeset(image: Image, target: Path, upper: Path, work: Path) -> None:
    mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    os.chmod(target / "f0", 0o600)
    with pytest.raises(OSError) as caught:
        os.rename(target / "dir", target / "moved")
    assert caught.value.errno == errno.EXDEV
    unmount(target)
    names = {name for path in [upper, *upper.rglob("*")] for name in os.listxattr(path)}
    assert not names & {"trusted.overlay.redirect", "trusted.overlay.metacopy"}
    assert (upper / "f0").read_text() == "layer 0\n"
    assert os.listdir(work) == ["work"]


@needs_erofs
def test_inode_numbers_are_distinct_and_fit_into_32_bits(image: Image, target: Path, upper: Path, work: Path) -> None:
    mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    (target / "new").write_text("")
    (target / "f1").write_text("copied up")
    found = [os.lstat(path) for path in [target, *target.rglob("*")]]
    assert max(status.st_ino for status in found) < 1 << 32
    # One pair of names is a hard link.
    assert len({(status.st_dev, status.st_ino) for status in found}) == len(found) - 1
    unmount(target)


@needs_erofs
def test_set_user_id_and_devices_are_off_unless_lifted(image: Image, target: Path, upper: Path, work: Path) -> None:
    number = mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    assert {"nosuid", "nodev", "rw"} <= set(_entry(number).options)
    os.mknod(target / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (target / "null").read_bytes()
    unmount(target)
    lifted = MountOptions(nosuid=False, nodev=False, noexec=True)
    number = mount_merged(image.tree, image.devices, target, upper=upper, work=work, options=lifted)
    assert set(_entry(number).options) & {"nosuid", "nodev", "noexec"} == {"noexec"}
    assert (target / "null").read_bytes() == b""
    unmount(target)


@needs_erofs
def test_a_mounted_upper_is_refused(image: Image, target: Path, upper: Path, work: Path, tmp_path: Path) -> None:
    mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(upper)
    for name in (upper, tmp_path / "link"):
        with pytest.raises(Conflict, match=f"already mounted at {target}") as caught:
            mount_merged(image.tree, image.devices, other, upper=name, work=work)
        assert caught.value.reason == "mounted"
    found = find_upper_mount(upper)
    assert found is not None
    assert found.target == str(target)
    unmount(target)
    assert find_upper_mount(upper) is None
    mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    unmount(target)


@needs_erofs
def test_the_mount_outlives_its_process_and_two_race_for_one_upper(
    image: Image, target: Path, upper: Path, work: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from layerfs.mount.overlay import mount_merged\n"
        "try: mount_merged(sys.argv[1], sys.argv[2:4], sys.argv[4], upper=sys.argv[5], work=sys.argv[6]); print('ok')\n"
        "except Exception as err: print(type(err).__name__)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, image.tree, *image.devices, target, upper, work],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["Conflict", "Conflict", "Conflict", "ok"]
    assert (target / "f0").read_text() == "layer 0\n"
    unmount(target)


@needs_erofs
@pytest.mark.parametrize("name", ["a b", "a,b", "a:b", "a\\b", "x" * 250, "\udcff\n"])
def test_any_path_can_be_mounted(image: Image, tmp_path: Path, name: str) -> None:
    base = tmp_path / name
    for part in ("target", "upper", "work"):
        (base / part).mkdir(parents=True)
    shutil.copy(image.tree, base / "tree")
    shutil.copy(image.devices[0], base / "zero")
    mount_merged(
        base / "tree", [base / "zero", image.devices[1]], base / "target", upper=base / "upper", work=base / "work"
    )
    try:
        assert (base / "target" / "f0").read_text() == "layer 0\n"
        assert find_upper_mount(base / "upper") is not None
    finally:
        unmount(base / "target")


@needs_erofs
@pytest.mark.parametrize("many", [1, 1000], ids=["beside", "before"])
def test_a_check_that_fails_ends_the_mount(
    image: Image, target: Path, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "_MANY", many)
    mounts, calls = len(read_mounts()), []

    def refuse() -> None:
        calls.append(1)
        raise IntegrityError("a layer is too short")

    with pytest.raises(IntegrityError, match="a layer is too short"):
        mount_merged(image.tree, image.devices, target, read_only=True, check=refuse)
    assert (len(calls), len(read_mounts())) == (1, mounts)
    mount_merged(image.tree, image.devices, target, read_only=True, check=lambda: calls.append(2))
    assert (calls, len(read_mounts())) == ([1, 2], mounts + 1)


@needs_erofs
def test_errors_say_what_and_leave_nothing(image: Image, target: Path, upper: Path, work: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no image " * 1000)
    mounts = len(read_mounts())
    with pytest.raises(MountError, match=r"target .*/none does not exist") as caught:
        mount_merged(image.tree, image.devices, tmp_path / "none", read_only=True)
    assert caught.value.hint
    with pytest.raises(MountError, match=r"target .*/file is not a directory"):
        mount_merged(image.tree, image.devices, file, upper=upper, work=work)
    with pytest.raises(MountError, match=r"cannot mount .*/file"):
        mount_merged(file, [], target, read_only=True)
    with pytest.raises(MountError, match=r"missing\.tar: No such file"):
        mount_merged(image.tree, [image.devices[0], tmp_path / "missing.tar"], target, upper=upper, work=work)
    with pytest.raises(MountError, match=r"tree\.erofs"):
        mount_merged(image.tree, image.devices[:1], target, upper=upper, work=work)
    with pytest.raises(MountError, match=r"upper directory .*/none cannot be opened"):
        mount_merged(image.tree, image.devices, target, upper=tmp_path / "none", work=work)
    with pytest.raises(MountError, match="are not on one mount") as caught:
        mount_merged(image.tree, image.devices, target, upper=upper, work="/proc")
    assert caught.value.backend == "overlay"
    assert len(read_mounts()) == mounts
    for options in ({"upper": upper}, {"work": work}, {}):
        with pytest.raises(ValueError, match="upper"):
            mount_merged(image.tree, image.devices, target, **options)  # type: ignore[arg-type]


@needs_erofs
def test_a_failure_while_attaching_leaves_nothing(
    image: Image, target: Path, upper: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_mount: int, _place: int) -> None:
        raise OSError(errno.EIO, "broken")

    mounts = len(read_mounts())
    monkeypatch.setattr(overlay, "move_mount", fail)
    with pytest.raises(MountError, match=r"cannot attach a mount at .*: broken"):
        mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    assert len(read_mounts()) == mounts
    monkeypatch.undo()
    mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    unmount(target)


def test_no_privilege_is_explained(
    image: Image, target: Path, upper: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fstype: str) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    missing = probe.Feature("privilege", usable=False, reason="user 1000 lacks CAP_SYS_ADMIN")
    monkeypatch.setattr(mount_api, "fsopen", refuse)
    monkeypatch.setattr(overlay, "feature", lambda _name: missing)
    with pytest.raises(BackendUnavailable, match="user 1000 lacks CAP_SYS_ADMIN") as caught:
        mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    assert caught.value.reasons == {"overlay": "user 1000 lacks CAP_SYS_ADMIN"}
    assert caught.value.hint == probe.privilege_hint()


@needs_erofs
def test_kernels_that_need_attached_lowers(
    image: Image, target: Path, upper: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_old_kernel(monkeypatch)
    before = len(read_mounts())
    mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    assert len(read_mounts()) == before + 1
    assert (target / "f0").read_text() == "layer 0\n"
    (target / "new").write_text("x")
    assert (upper / "new").read_text() == "x"
    with pytest.raises(Conflict):
        mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    unmount(target)


def _pretend_old_kernel(monkeypatch: pytest.MonkeyPatch, *, legacy: bool = False) -> None:
    """Make overlayfs refuse what kernels before 6.15, or before 6.7, refuse."""
    old = probe.Feature("overlay-lower-fd", usable=False, reason="old")
    monkeypatch.setattr(detached, "feature", lambda _name: old)

    def refuse_fd(_context: int, key: str, _fd: int) -> None:
        raise OSError(errno.EINVAL, f"no descriptor for {key}")

    monkeypatch.setattr(mount_api, "fsconfig_fd", refuse_fd)
    if legacy:
        real = mount_api.fsconfig_string

        def refuse_string(context: int, key: str, value: str) -> None:
            if key == "lowerdir+":
                raise OSError(errno.EINVAL, "no lowerdir+")
            real(context, key, value)

        monkeypatch.setattr(mount_api, "fsconfig_string", refuse_string)


def _layers(folder: Path) -> list[Path]:
    """Make three layers in overlayfs form, and return them top first."""
    layers = [folder / name for name in ("top", "middle", "bottom")]
    for layer in layers:
        (layer / "d").mkdir(parents=True)
        (layer / layer.name).write_text(layer.name)
        (layer / "d" / layer.name).write_text("")
    os.mknod(layers[0] / "bottom", stat.S_IFCHR, 0)
    os.setxattr(layers[1] / "d", "trusted.overlay.opaque", b"y")
    return layers


@pytest.fixture(params=["new", "attached", "legacy"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to stack directories, whatever the running kernel."""
    if request.param != "new":
        _pretend_old_kernel(monkeypatch, legacy=request.param == "legacy")
    return str(request.param)


def test_directories_are_stacked(tmp_path: Path, target: Path, upper: Path, work: Path, kernel: str) -> None:
    layers = _layers(tmp_path)
    number = mount_directories(layers, target, upper=upper, work=work)
    assert {"nosuid", "nodev"} <= set(_entry(number).options)
    assert sorted(os.listdir(target)) == ["d", "middle", "top"]
    assert sorted(os.listdir(target / "d")) == ["middle", "top"]
    (target / "new").write_text("")
    assert os.listdir(upper) == ["new"]
    assert find_upper_mount(upper) is not None
    unmount(target)
    number = mount_directories(layers, target, read_only=True)
    assert "ro" in _entry(number).options
    assert sorted(os.listdir(target)) == ["d", "middle", "top"]
    unmount(target)


def test_a_layer_with_an_opaque_root_hides_all_below(tmp_path: Path, target: Path, kernel: str) -> None:
    layers = _layers(tmp_path)
    os.setxattr(layers[1], "trusted.overlay.opaque", b"y")
    mount_directories(layers, target, read_only=True)
    assert sorted(os.listdir(target)) == ["d", "middle", "top"]
    unmount(target)
    (layers[0] / "bottom").unlink()
    mount_directories(layers, target, read_only=True)
    assert sorted(os.listdir(target)) == ["d", "middle", "top"]
    unmount(target)
    os.setxattr(layers[1], "trusted.overlay.opaque", b"x")
    mount_directories(layers, target, read_only=True)
    assert sorted(os.listdir(target)) == ["bottom", "d", "middle", "top"]
    unmount(target)


def test_one_layer_may_come_twice(tmp_path: Path, target: Path, upper: Path, work: Path, kernel: str) -> None:
    layers = _layers(tmp_path)
    (layers[0] / "bottom").unlink()
    os.mknod(layers[1] / "bottom", stat.S_IFCHR, 0)
    mount_directories([layers[2], layers[0], layers[1], layers[2]], target, upper=upper, work=work)
    assert sorted(os.listdir(target)) == ["bottom", "d", "middle", "top"]
    assert sorted(os.listdir(target / "d")) == ["bottom", "middle", "top"]
    unmount(target)


def test_a_single_read_only_directory_hides_its_whiteouts(tmp_path: Path, target: Path, kernel: str) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "file").write_text("x")
    os.mknod(tmp_path / "only" / "gone", stat.S_IFCHR, 0)
    os.chmod(tmp_path / "only", 0o1711)
    os.utime(tmp_path / "only", ns=(1, 2))
    before = len(read_mounts())
    mount_directories([tmp_path / "only"], target, read_only=True)
    assert (stat.S_IMODE(target.stat().st_mode), target.stat().st_mtime_ns) == (0o1711, 2)
    assert os.listdir(target) == ["file"]
    assert len(read_mounts()) == before + 1
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    unmount(target)


def test_a_missing_layer_and_too_many_are_refused(tmp_path: Path, target: Path) -> None:
    layers = _layers(tmp_path)
    with pytest.raises(MountError, match="gone: No such file or directory"):
        mount_directories([*layers, tmp_path / "gone"], target, read_only=True)
    with pytest.raises(MountError, match="500 layers are more than the 499") as caught:
        mount_directories([tmp_path / str(number) for number in range(500)], target, read_only=True)
    assert caught.value.hint is not None
    with pytest.raises(ValueError, match="at least one"):
        mount_directories([], target, read_only=True)


@needs_erofs
def test_unmount_names_the_holders(image: Image, target: Path, upper: Path, work: Path) -> None:
    number = mount_merged(image.tree, image.devices, target, upper=upper, work=work)
    with (target / "f0").open(), pytest.raises(MountError, match=rf"\({os.getpid()}, open file\)") as caught:
        unmount(target)
    assert caught.value.errno == errno.EBUSY
    mount_api.legacy_mount("none", target / "dir", "tmpfs", 0, "")
    with pytest.raises(MountError, match=f"in use by mount {target}/dir"):
        unmount(target)
    mount_api.umount(target / "dir")
    mount_api.legacy_mount("none", target, "tmpfs", 0, "")
    with pytest.raises(MountError, match="covered by another mount of type tmpfs"):
        unmount(target, mount_id=number)
    mount_api.umount(target)
    unmount(target, mount_id=number)
    with pytest.raises(MountError, match="nothing is mounted there"):
        unmount(target)


@needs_erofs
def test_a_lazy_unmount_lets_users_finish(image: Image, target: Path) -> None:
    mount_merged(image.tree, image.devices, target, read_only=True)
    with (target / "f0").open() as file:
        unmount(target, lazy=True)
        assert os.listdir(target) == []
        assert file.read() == "layer 0\n"


@needs_erofs
@pytest.mark.parametrize("layers", [1, 499])
def test_mounts_at_any_depth(tmp_path: Path, target: Path, upper: Path, work: Path, layers: int) -> None:
    deep = make_image(tmp_path, layers=layers)
    mount_merged(deep.tree, deep.devices, target, upper=upper, work=work)
    assert (target / f"f{layers - 1}").read_text() == f"layer {layers - 1}\n"
    unmount(target)
