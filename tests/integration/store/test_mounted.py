"""Stores under live mounts, on read-only file systems, and with images that other tools made."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import BackendUnavailable, Conflict, MountError, NotFound, StoreFull, StoreReadOnly
from layerfs.formats.digest import Digest
from layerfs.formats.erofs.reader import Tree
from layerfs.linux.mount_api import umount
from layerfs.mount import image as image_mount
from layerfs.mount.image import unmount_record
from layerfs.mount.record import MountRecords
from layerfs.store.handle import StoreHandle
from layerfs.store.layer import device_paths
from tests.image_builder import TestImage, entry, layer, noise, oci, outer, pipe
from tests.integration.store.conftest import Mount
from tests.store_audit import assert_whole

pytestmark = pytest.mark.needs_root

SHARED = noise(400_000, "shared")
DONOR = TestImage([layer({"donor": SHARED, "x": noise(9000)})], ["donor:1"])
BORROWER = TestImage([layer({"copy": SHARED, "y": noise(9000, 1)})], ["borrower:1"])


@pytest.mark.parametrize(
    "backend",
    [pytest.param("overlay", marks=pytest.mark.needs_overlay), pytest.param("fuse", marks=pytest.mark.needs_fuse)],
)
def test_mounting_from_a_read_only_file_system(mount: Mount, tmp_path: Path, backend: str) -> None:
    image, target = tmp_path / "disk", tmp_path / "target"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    disk = mount(image, "ext4", "loop")  # not tmpfs: the kernel mounts no EROFS from there
    target.mkdir()
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with Store.open(disk / "store", runroot=tmp_path / "run") as store:
        with pytest.raises(StoreReadOnly):
            store.mount("donor:1", target, backend=backend)
        store.mount("donor:1", target, backend=backend, read_only=True)
        try:
            with Store.open(disk / "store") as elsewhere:  # its own run root is as read-only
                assert elsewhere.mounts() == []
                with pytest.raises(StoreReadOnly):
                    elsewhere.mount("donor:1", tmp_path / "run", backend=backend, read_only=True)
            assert (target / "donor").read_bytes() == SHARED
            with pytest.raises(Conflict):
                store.mount("donor:1", target, backend=backend, read_only=True)
            assert [found.target for found in store.mounts()] == [str(target)]
        finally:
            store.umount(str(target))
        assert not list(target.iterdir())


@pytest.mark.needs_overlay
@pytest.mark.needs_fuse
def test_a_file_system_from_which_the_kernel_mounts_no_image(mount: Mount, tmp_path: Path) -> None:
    disk, target = mount("none", "tmpfs", "size=8m"), tmp_path / "target"
    target.mkdir()
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
        with pytest.raises(BackendUnavailable, match="lies on tmpfs") as refused:
            store.mount("donor:1", target, backend="overlay", lower="erofs")
        assert refused.value.hint == "use --backend overlay --lower dirs"
        del refused  # its traceback keeps the tree mapped
        assert not store.containers()
        for backend, expected in (("auto", "fuse"), ("overlay", "overlay")):
            made = store.mount("donor:1", target, backend=backend)
            try:
                assert made.backend == expected
                assert (target / "donor").read_bytes() == SHARED
                (target / "new").write_text("new")
            finally:
                store.umount(str(target))


@pytest.mark.needs_overlay
@pytest.mark.needs_fuse
@pytest.mark.parametrize(("backend", "lower"), [("overlay", "erofs"), ("overlay", "dirs"), ("fuse", "auto")])
def test_an_image_that_carries_the_bytes_of_its_small_layers(tmp_path: Path, backend: str, lower: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    files = {f"f{number}": noise(100 * number + 1, number) for number in range(40)}
    # A hard link to a file of another layer: --lower dirs then unpacks the merged tree.
    layers = [*(layer({name: data}) for name, data in files.items()), layer([entry("link", kind=b"1", link="f9")])]
    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(pipe(outer(oci(TestImage(layers, ["deep:1"])))))
        store.mount("deep:1", target, name="box", backend=backend, lower=lower)
        try:
            # Made anew under the mount, with bytes at other places: it keeps the file that it has open.
            merged = next((tmp_path / "store" / "images" / "sha256").iterdir())
            shutil.copy(merged, tmp_path / "kept")
            with open(tmp_path / "new", "wb") as file:
                file.write(bytes(merged.stat().st_size))
            os.rename(tmp_path / "new", merged)
            _drop_caches()
            assert {name: (target / name).read_bytes() for name in files} == files
            assert (target / "link").read_bytes() == files["f9"]
            with open(target / "f20", "ab") as file:
                file.write(b"more")
            assert (target / "f20").read_bytes() == files["f20"] + b"more"
        finally:
            store.umount(str(target))
            os.rename(tmp_path / "kept", merged)
        assert [(change.kind, change.path) for change in store.diff("box")] == [("C", b"/f20")]
        assert_whole(store)


@pytest.mark.needs_overlay
@pytest.mark.needs_fuse
@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_a_tree_that_is_written_anew_while_it_is_mounted(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    times = 0
    with Store.open(tmp_path / "store", sync=False) as store:
        (image,) = store.load(pipe(outer(oci(DONOR))))

        def late(handle: StoreHandle, tree: Tree) -> list[str]:
            nonlocal times
            times += 1
            if times == 1:
                merged = handle.layout.merged_tree(image.chain_id)
                shutil.copy(merged, tmp_path / "new")
                os.rename(tmp_path / "new", merged)
            return device_paths(handle, tree)

        monkeypatch.setattr(image_mount, "device_paths", late)
        store.mount("donor:1", target, backend=backend, read_only=True)
        try:
            assert times == 2
            assert (target / "donor").read_bytes() == SHARED
        finally:
            store.umount(str(target))
        assert not target.is_mount()


@pytest.mark.needs_overlay
@pytest.mark.parametrize(
    "top",
    [
        layer({"a/": b"", "a/.wh..wh..opq": b"", "a/.wh.x": b"", "a/z": b"1"}),
        layer({"a/": b"", "a/.wh..wh..opq": b"", "a/d/": b"", "a/d/.wh.y": b""}),
        layer({"b/": b"", "b/.wh.none": b"", "b/f": b"1"}),
        layer({".wh.a": b"", "a/": b"", "a/.wh.x": b"", "a/z": b"1"}),
        layer({"x/": b"", "x/.wh.none": b""}),  # over a file
        layer({"a/": b"", "a/.wh.x": b"", "a/d/": b"", "a/d/.wh.y": b"", ".wh.gone": b""}),
    ],
)
def test_directories_show_no_whiteouts(tmp_path: Path, top: bytes) -> None:
    base = layer({"a/": b"", "a/x": b"1", "a/d/": b"", "a/d/y": b"1", "x": b"1", "gone": b"1"})
    target = tmp_path / "target"
    target.mkdir()
    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(pipe(outer(oci(TestImage([base, top], ["a:1"])))))
        found = []
        for lower in ("erofs", "dirs"):
            store.mount("a:1", target, read_only=True, backend="overlay", lower=lower)
            try:
                found.append(sorted(str(path.relative_to(target)) for path in target.rglob("*")))
                assert all(path.lstat() for path in target.rglob("*"))
            finally:
                store.umount(str(target))
        assert found[0] == found[1]


@pytest.mark.needs_overlay
@pytest.mark.parametrize("lower", ["erofs", "dirs"])
def test_the_root_is_that_of_the_image(tmp_path: Path, lower: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    base = layer([entry("./", kind=b"5", mode=0o1711, uid=5, mtime=1_000_000), entry("f", b"1")])
    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(pipe(outer(oci(TestImage([base, layer({"g": b"2"})], ["a:1"])))))
        store.mount("a:1", target, read_only=True, backend="overlay", lower=lower)
        try:
            status = target.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o1711, 5, 1_000_000)
        finally:
            store.umount(str(target))


@pytest.mark.needs_overlay
def test_a_mount_reads_on_while_its_donor_goes(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with Store.open(tmp_path / "store", sync=False) as store:
        for image in (DONOR, BORROWER):
            store.load(pipe(outer(oci(image))))
        store.mount("borrower:1", target, read_only=True)
        try:
            store.remove_image("donor:1")
            _drop_caches()
            assert (target / "copy").read_bytes() == SHARED
            # The layer under the mount is damaged and healed: the mount keeps the files that it has open.
            path = Path(store._handle.layout.layer_tree(Digest.parse(BORROWER.diff_ids[0])))
            path.unlink()
            store.load(pipe(outer(oci(BORROWER))))
            _drop_caches()
            assert (target / "copy").read_bytes() == SHARED
            assert (target / "y").read_bytes() == noise(9000, 1)
        finally:
            store.umount(str(target))
        store.mount("borrower:1", target, read_only=True)
        try:
            assert (target / "copy").read_bytes() == SHARED
        finally:
            store.umount(str(target))
        assert_whole(store)


def test_a_read_only_file_system(mount: Mount, tmp_path: Path) -> None:
    disk = mount("none", "tmpfs", "size=8m")
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for root in (disk / "store", disk / "other"):
        with pytest.raises(StoreReadOnly), Store.open(root) as store:
            store.load(pipe(outer(oci(BORROWER))))
    with Store.open(disk / "store") as store:
        (image,) = store.images()
        with store.tree(image) as tree:
            assert tree.read(tree.resolve(b"/donor")) == SHARED
        assert list(store.check()) == []
        assert store.containers() == []
        with pytest.raises(StoreReadOnly):
            store.tag("donor:1", "another:1")
        with pytest.raises(StoreReadOnly):
            store.remove_image("donor:1")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    with Store.open(disk / "store", sync=False) as store:
        assert_whole(store)


def test_a_store_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory(prefix="layerfs-", dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        Store.open(f"{place}/store").close()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                Store.open(f"{place}/store")
            except StoreReadOnly:
                code = 42
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[Store, Path]]:
    """A store with an image, and a directory to mount it on."""
    target = tmp_path / "target"
    target.mkdir()
    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
        try:
            yield store, target
        finally:
            while target.is_mount():
                umount(target)


@pytest.mark.needs_overlay
def test_a_container_in_another_mount_namespace_is_in_use(container: tuple[Store, Path]) -> None:
    store, target = container
    store.mount("donor:1", target, name="box")
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as elsewhere:
        try:
            assert elsewhere.stdout is not None
            elsewhere.stdout.readline()
            store.umount("box")
            with pytest.raises(Conflict, match="another mount namespace") as caught:
                store.remove_container("box")
            assert f"--target {elsewhere.pid} " in (caught.value.hint or "")
            with pytest.raises(Conflict):
                store.mount("donor:1", target, name="box")
        finally:
            elsewhere.kill()
    store.mount("donor:1", target, name="box")
    store.umount("box")
    store.remove_container("box")


@pytest.mark.needs_overlay
def test_a_container_that_has_another_path_in_another_namespace_is_in_use(
    container: tuple[Store, Path], tmp_path: Path
) -> None:
    store, target = container
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = """
import sys, time
from layerfs.api import Store
with Store.open(sys.argv[1], runroot=sys.argv[3]) as store:
    store.mount("donor:1", sys.argv[2], name="box")
    print("ready", flush=True)
    time.sleep(600)
"""
    script = 'mount --bind "$1/store" "$1/elsewhere" && exec "$2" -c "$3" "$1/elsewhere" "$1/target" "$1/run2"'
    words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        str(tmp_path),
        sys.executable,
        code,
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            for attempt in (lambda: store.remove_container("box"), lambda: store.mount("donor:1", target, name="box")):
                with pytest.raises(Conflict, match="another mount namespace"):
                    attempt()
        finally:
            process.kill()
    store.remove_container("box")


@pytest.mark.needs_overlay
@pytest.mark.needs_fuse
@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_a_mount_that_fails_at_its_very_end_leaves_nothing(
    container: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    store, target = container

    def interrupted(*_: object, **__: object) -> None:
        assert target.is_mount()
        raise KeyboardInterrupt

    monkeypatch.setattr(MountRecords, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.mount("donor:1", target, name="box", backend=backend)
    assert not target.is_mount()
    assert store.containers() == []
    monkeypatch.undo()
    seen = 0

    def identity(status: os.stat_result) -> tuple[int, ...]:
        nonlocal seen
        seen += 1
        if target.is_mount():  # the tree is looked at again, right after the mount
            raise KeyboardInterrupt
        return (status.st_ino,)

    monkeypatch.setattr(image_mount, "_identity", identity)
    with pytest.raises(KeyboardInterrupt):
        store.mount("donor:1", target, name="box", backend=backend)
    assert seen
    assert not target.is_mount()
    assert not store.containers()
    assert not store.mounts()


@pytest.mark.needs_overlay
def test_what_went_wrong_is_told_though_cleaning_up_fails_too(
    container: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, _ = container

    def refused(*_: object, **__: object) -> None:
        (own,) = (tmp_path / "store" / "run" / "targets").iterdir()
        (own / "file").write_text("in the way")
        raise MountError("the real reason")

    monkeypatch.setattr(image_mount, "mount_image", refused)
    with pytest.raises(MountError, match="the real reason"):
        store.mount("donor:1", name="box")
    assert store.containers() == []


@pytest.mark.needs_fuse
def test_a_container_with_what_chattr_protects_can_be_removed(container: tuple[Store, Path]) -> None:
    store, target = container
    store.mount("donor:1", target, name="box", backend="fuse")
    (target / "dir").mkdir()
    (target / "dir/file").write_text("x")
    subprocess.run(["chattr", "+i", target / "dir/file", target / "dir"], check=True)
    store.umount("box")
    store.remove_container("box")
    assert not list(Path(store._handle.layout.root, "snapshots").iterdir())


@pytest.mark.needs_overlay
def test_a_container_whose_directory_is_gone_can_be_removed(container: tuple[Store, Path], tmp_path: Path) -> None:
    store, target = container
    store.mount("donor:1", target, name="box")
    store.umount("box")
    shutil.rmtree(tmp_path / "store" / "snapshots" / store.container("box").id)
    assert store.remove_container("box").name == "box"
    store.remove_image("donor:1")


@pytest.mark.needs_overlay
@pytest.mark.parametrize("read_only", [True, False])
def test_a_store_and_a_run_root_behind_symbolic_links(tmp_path: Path, read_only: bool) -> None:
    for name in ("real-store", "real-run"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "store").symlink_to("real-store")
    (tmp_path / "run").symlink_to("real-run")
    with Store.open(tmp_path / "store", runroot=tmp_path / "run", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
        box = None if read_only else "box"
        made = store.mount("donor:1", name=box, read_only=read_only)
        shutil.rmtree(tmp_path / "real-run" / "mounts")
        (again,) = store.mounts()  # nobody recorded it, but the kernel knows
        assert (again.target, again.container) == (made.target, box)
        store.umount(made.target)
        assert not os.path.lexists(made.target)


@pytest.mark.needs_fuse
@pytest.mark.parametrize("closed", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_the_process_of_a_mount_needs_no_standard_streams(
    container: tuple[Store, Path], tmp_path: Path, closed: tuple[int, ...]
) -> None:
    _, target = container
    code = f"""
import os, sys
from layerfs.api import Store
for number in {closed!r}:
    os.close(number)
with Store.open(sys.argv[1], sync=False) as store:
    store.mount("donor:1", sys.argv[2], name="box", backend="fuse")
    with open(sys.argv[2] + "/new", "w") as file:
        file.write("written")
    names = sorted(os.listdir(sys.argv[2]))
    store.umount("box")
    sys.exit(names != ["donor", "new", "x"])
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "store", target], check=False).returncode == 0


@pytest.mark.needs_fuse
def test_a_container_whose_record_is_gone_is_still_in_use(container: tuple[Store, Path], tmp_path: Path) -> None:
    store, target = container
    store.mount("donor:1", target, name="box", backend="fuse")
    shutil.rmtree(tmp_path / "store" / "run" / "mounts")
    with pytest.raises(Conflict, match="served through FUSE"):
        store.remove_container("box")
    (target / "new").write_text("kept")
    umount(target)
    for _ in range(100):
        try:
            store.remove_container("box")
            break
        except Conflict:  # its process is still closing files
            time.sleep(0.05)
    assert store.containers() == []


@pytest.mark.needs_overlay
def test_two_unmount_at_once(container: tuple[Store, Path]) -> None:
    store, _ = container
    store.mount("donor:1", name="box")
    (record,) = store._records().live()
    store.umount("box")
    with pytest.raises(NotFound, match=record.target):
        unmount_record(store._handle, record)
    store.mount("donor:1", name="box")
    assert store._records().find("box") is not None
    store.umount("box")


@pytest.mark.needs_overlay
@pytest.mark.needs_overlay
def test_a_mount_that_goes_while_it_is_taken_note_of(
    container: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has just unmounted it, and removed its record."""
    store, target = container
    store.mount("donor:1", target, name="box", backend="overlay")
    shutil.rmtree(Path(store._handle.layout.runroot) / "mounts")

    def gone(*_arguments: object, **_options: object) -> None:
        raise MountError("the mount is gone", errno=errno.ENOENT)

    with monkeypatch.context() as patch:
        patch.setattr(MountRecords, "add", gone)
        assert store.mounts() == []
    (mount,) = store.mounts()
    assert mount.target == os.path.realpath(target)


def test_unpacked_layers_of_a_mount_without_a_record_stay(container: tuple[Store, Path], tmp_path: Path) -> None:
    store, target = container
    store.mount("donor:1", target, read_only=True, lower="dirs")
    shutil.rmtree(tmp_path / "store" / "run" / "mounts")
    with pytest.raises(Conflict, match="mounted"):
        store.remove_image("donor:1", force=True)
    assert (target / "donor").read_bytes() == SHARED
    store.umount(str(target))
    store.remove_image("donor:1")


@pytest.mark.needs_overlay
def test_a_container_that_fills_the_disk_can_be_removed(mount: Mount, tmp_path: Path) -> None:
    disk, target = _disk(mount, tmp_path, 150, "ext4", "-m0"), tmp_path / "target"
    target.mkdir()
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
        store.mount("donor:1", target, name="box")
    try:
        _fill(target / "big")
        with Store.open(disk / "store", sync=False) as store:
            assert [box.name for box in store.containers()] == ["box"]
            store.umount("box")
            store.remove_container("box")
            assert store.containers() == []
        with Store.open(disk / "store", sync=False) as store:
            store.load(pipe(outer(oci(BORROWER))))
            assert_whole(store)
        assert (disk / "store" / "store.db.spare").exists()
    finally:
        if target.is_mount():
            umount(target)


@pytest.mark.needs_overlay
@pytest.mark.parametrize(
    "kind", [["ext4", "-m0"], ["ext4", "-m0", "-b1024"], ["btrfs", "-f"]], ids=["ext4", "small blocks", "btrfs"]
)
def test_a_full_disk_is_looked_at_and_emptied_without_what_was_set_aside(
    mount: Mount, tmp_path: Path, kind: list[str]
) -> None:
    disk, target = _disk(mount, tmp_path, 150, *kind), tmp_path / "target"
    target.mkdir()
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
        store.mount("donor:1", target, name="box")
    try:
        _fill(target / "big")
        with Store.open(disk / "store", sync=False) as store:
            assert [box.target for box in store.containers()] == [str(target)]
        assert (disk / "store/store.db.spare").exists(), "whoever goes on writing would have it now"
        (disk / "store/store.db.spare").unlink()
        _fill(disk / "eaten")
        code = (
            "import sys; from layerfs.api import Store\n"
            "with Store.open(sys.argv[1], sync=False) as store: store.remove_container('box', force=True)"
        )
        subprocess.run([sys.executable, "-c", code, disk / "store"], check=True)
        with Store.open(disk / "store", sync=False) as store:
            assert store.containers() == []
            store.remove_image("donor:1")
            (disk / "eaten").unlink()
            assert_whole(store)
    finally:
        if target.is_mount():
            umount(target)


@pytest.mark.needs_overlay
def test_a_quota_is_a_full_disk(mount: Mount, tmp_path: Path) -> None:
    disk, target = _disk(mount, tmp_path, 300, "btrfs", "-f"), tmp_path / "target"
    for words in (f"quota enable {disk}", f"subvolume create {disk}/volume"):
        subprocess.run(["btrfs", *words.split()], check=True, capture_output=True)
    root = disk / "volume/store"
    target.mkdir()
    with Store.open(root, sync=False) as store:
        store.load(pipe(outer(oci(DONOR))))
        store.mount("donor:1", target, name="box")
    try:
        subprocess.run(["btrfs", "qgroup", "limit", "20M", disk / "volume"], check=True, capture_output=True)
        _fill(target / "big")
        with Store.open(root, sync=False) as store:
            assert [box.target for box in store.containers()] == [str(target)]
        (root / "store.db.spare").unlink()
        os.sync()
        _fill(target / "more")
        os.sync()
        with pytest.raises(StoreFull), Store.open(root, sync=False) as store:
            store.tag("donor:1", "another:1")
        (target / "more").unlink()
        os.sync()
        with Store.open(root, sync=False) as store:
            store.umount("box")
            store.remove_container("box")
            assert_whole(store)
    finally:
        if target.is_mount():
            umount(target)


def _disk(mount: Mount, folder: Path, size: int, kind: str, *options: str) -> Path:
    """Make a file system of so many MiB in a file, and mount it."""
    file = folder / "disk"
    file.touch()
    os.truncate(file, size << 20)
    subprocess.run([f"mkfs.{kind}", "-q", *options, file], check=True, capture_output=True)
    return mount(file, kind, "loop")


def _fill(path: Path) -> None:
    """Write a file until not a byte more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
