"""A disk or its inodes running out, anywhere in a load: an error, the space given back, and nothing lost."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import StoreError, StoreFull
from layerfs.store.image import find_image
from layerfs.store.snapshot import create_snapshot
from tests.image_builder import TestImage, docker_old, entry, layer, noise, oci, outer, pipe, write_layout
from tests.integration.store.conftest import Mount
from tests.store_audit import assert_clean, assert_whole, contents

pytestmark = pytest.mark.needs_root

KEPT = TestImage([layer({"kept": noise(200_000, "kept"), "more": noise(9000, "more")})], ["kept:1"])
BIG = TestImage(
    [
        layer({"a": noise(700_000, "a"), "kept": noise(200_000, "kept")}),
        layer({f"b{number}": noise(30_000, number) for number in range(40)}),
        layer([entry(f"many/{number}", b"x") for number in range(3000)]),
    ],
    ["big:1"],
)


def _used(folder: Path) -> tuple[int, int]:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


@pytest.mark.parametrize("size", [1200, 1500, 2200, 3000, 3600, 4600])
@pytest.mark.parametrize("form", ["pipe", "layout"])
def test_no_space(mount: Mount, tmp_path: Path, size: int, form: str) -> None:
    disk = mount("none", "tmpfs", f"size={size}k")
    layout = write_layout(tmp_path / "layout", oci(BIG))
    archive = outer(docker_old(BIG))
    with Store.open(disk / "store") as store:
        store.load(pipe(outer(oci(KEPT))))
        before, _ = _used(disk)
        for _ in range(3):
            with pytest.raises(StoreError, match=r"space|full"):
                store.load(layout if form == "layout" else pipe(archive))
            after, _ = _used(disk)
            assert [image.names for image in store.images()] == [("docker.io/library/kept:1",)]
            # The database's log keeps the size that it once had; all else is given back.
            log = (disk / "store" / "store.db-wal").stat().st_size
            assert after - before - log < 64 << 10
        assert_whole(store)
    with Store.open(disk / "store") as store:
        assert _used(disk)[0] - before < 64 << 10
        os.statvfs(disk)
        assert contents(store, "kept:1")[b"/kept"] == noise(200_000, "kept")
        # More room, and the same load works.
        os.system(f"mount -o remount,size=64m {disk}")
        store.load(pipe(archive))
        assert_whole(store)


@pytest.mark.parametrize("inodes", range(36, 62, 4))
def test_no_inodes(mount: Mount, tmp_path: Path, inodes: int) -> None:
    disk = mount("none", "tmpfs", f"size=32m,nr_inodes={inodes}")
    archive = outer(docker_old(BIG))
    try:
        store = Store.open(disk / "store")
    except StoreError:
        return
    with store:
        try:
            store.load(pipe(outer(oci(KEPT))))
            kept = True
        except StoreError:
            kept = False
        assert len(store.images()) == kept
        before, files = _used(disk)
        try:
            store.load(pipe(archive))
        except StoreError:
            assert len(store.images()) == kept
            log = (disk / "store" / "store.db-wal").stat().st_size
            assert _used(disk)[0] - before - log < 64 << 10
            os.system(f"mount -o remount,nr_inodes=1000 {disk}")
            store.gc()
            assert_clean(store)
            # Lock files that are kept, at most.
            assert _used(disk)[1] - files <= 4
            store.load(pipe(archive))
        assert_whole(store)


def test_a_disk_that_is_full_can_be_made_empty(mount: Mount) -> None:
    """Removing an image works on a full disk, and its bytes that others need go to them."""
    disk = mount("none", "tmpfs", "size=3000k")
    shared = TestImage([layer({"copy": noise(200_000, "kept")})], ["shared:1"])
    with Store.open(disk / "store") as store:
        store.load(pipe(outer(oci(KEPT))))
        store.load(pipe(outer(oci(shared))))
        with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises((StoreError, OSError)):
            # There is no room to move the bytes to; they stay where they are.
            store.remove_image("kept:1")
            store.gc()
        (disk / "filler").unlink()
        store.gc()
        assert contents(store, "shared:1") == {b"/copy": noise(200_000, "kept")}
        assert_whole(store)


def test_a_store_that_is_open_while_the_disk_fills_can_still_make_room(mount: Mount) -> None:
    disk = mount("none", "tmpfs", "size=80m")
    with Store.open(disk / "store") as store:
        store.load(pipe(outer(oci(KEPT))))
        with open(disk / "file", "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(StoreFull):
            for number in range(400):  # until the log of the database has to grow
                store.tag("kept:1", f"kept:{number + 2}")
        assert (disk / "store/store.db.spare").exists()
        (image,) = store.images()
        store.remove_image(image, force=True)
        os.unlink(disk / "file")
        assert store.images() == []


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_read_by_many_at_once(mount: Mount) -> None:
    disk = mount("none", "tmpfs", "size=12m")
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(KEPT))))
    _fill(disk / "file")
    with Store.open(disk / "store", sync=False) as store, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: len(store.images()), range(8))) == [1] * 8
        with Store.open(disk / "store", sync=False) as other:
            assert len(other.images()) == 1
        with pytest.raises(StoreFull):
            store.tag("kept:1", "kept:2")
        (disk / "file").unlink()
        store.tag("kept:1", "kept:2")
        assert {len(image.names) for image in pool.map(lambda _: store.images()[0], range(8))} == {2}
        with Store.open(disk / "store", sync=False) as other:
            other.remove_image("kept:2")
        _fill(disk / "file")
        store.remove_image("kept:1")
        assert store.images() == []


def test_what_a_load_that_filled_the_disk_has_left_is_room(mount: Mount) -> None:
    disk = mount("none", "tmpfs", "size=12m")
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(KEPT))))
        with store._handle.database.transaction() as connection:
            connection.execute("INSERT INTO lease SELECT 'dead', id FROM layer LIMIT 1")
    (disk / "store/ingest/dead").mkdir()
    _fill(disk / "store/ingest/dead/layer.tar")
    with Store.open(disk / "store", sync=False) as store:
        assert store.gc().size > 1 << 20
        assert_clean(store)


def test_what_others_write_on_a_disk_that_was_full_stays(mount: Mount) -> None:
    disk = mount("none", "tmpfs", "size=12m")
    with Store.open(disk / "store", sync=False) as store:
        store.load(pipe(outer(oci(KEPT))))
    (disk / "store/store.db.spare").unlink(missing_ok=True)
    _fill(disk / "file")
    with Store.open(disk / "store", sync=False) as store:
        assert len(store.images()) == 1  # and all of the database is in this process's memory
        with pytest.raises(StoreFull):
            store.gc()
        os.truncate(disk / "file", (disk / "file").stat().st_size - (180 << 10))
        with Store.open(disk / "store", sync=False) as other:
            record = find_image(other._handle, "kept:1")
            box = create_snapshot(other._handle, record, "box")
            (Path(other._handle.layout.upper(box.id)) / "precious").write_bytes(b"x")
        store.gc()
        assert [container.name for container in store.containers()] == ["box"]
        assert (Path(store._handle.layout.upper(box.id)) / "precious").read_bytes() == b"x"
