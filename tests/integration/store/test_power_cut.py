"""A power cut: what was reported done is there, and what was not is not half there."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from layerfs.api import Store
from tests.image_builder import TestImage, docker_old, layer, noise, oci, outer
from tests.integration.store.conftest import is_loading, load_command, time_of_load, wait_until
from tests.power_cut import Disk
from tests.store_audit import assert_clean, assert_whole, contents

pytestmark = pytest.mark.needs_root

BASE = TestImage([layer({"base": noise(300_000, "base"), "etc/": b"", "etc/x": b"x"})], ["base:1"])
IMAGE = TestImage(
    [
        layer({"shared": noise(300_000, "base"), "own": noise(2_000_000, "own")}),
        layer({f"d/{number}": noise(10_000, number) for number in range(100)}),
        layer({"top": noise(700_000, "top"), "empty": b""}),
    ],
    ["cut:1"],
)
EXPECTED = {
    b"/shared": noise(300_000, "base"), b"/own": noise(2_000_000, "own"), b"/top": noise(700_000, "top"),
    b"/empty": b"", b"/d": b"type 40000",
} | {b"/d/%d" % number: noise(10_000, number) for number in range(100)}  # fmt: skip


def _archive(folder: Path, image: TestImage, form: str) -> Path:
    path = folder / f"{form}-{image.id[7:]}.tar"
    path.write_bytes(outer((docker_old if form == "docker" else oci)(image)))
    return path


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_what_was_reported_done_survives(disk: Disk, tmp_path: Path, form: str) -> None:
    root = disk.path / "store"
    for image in (BASE, IMAGE):
        subprocess.run(load_command(root, _archive(tmp_path, image, form)), check=True, stdout=subprocess.DEVNULL)
        disk.cut()
        with Store.open(root) as store:
            assert str(store.resolve(image.names[0]).id) == image.id
            assert_whole(store)
            if image is IMAGE:
                assert contents(store, "cut:1") == EXPECTED
                target = tmp_path / "target"
                target.mkdir()
                store.mount("cut:1", target, read_only=True)
                assert {
                    b"/" + os.fsencode(path.relative_to(target)): path.read_bytes()
                    for path in target.rglob("*")
                    if path.is_file()
                } == {path: data for path, data in EXPECTED.items() if path != b"/d"}
                store.umount(str(target))


def test_names_and_removals_survive(disk: Disk, tmp_path: Path) -> None:
    root = disk.path / "store"
    with Store.open(root) as store:
        for image in (BASE, IMAGE):
            store.load(_archive(tmp_path, image, "oci"))
    with Store.open(root) as store:
        store.tag("cut:1", "other:2")
        store.remove_image("base:1")
    disk.cut()
    with Store.open(root) as store:
        assert [image.names for image in store.images()] == [("docker.io/library/cut:1", "docker.io/library/other:2")]
        assert contents(store, "other:2") == EXPECTED
        assert_whole(store)


@pytest.mark.parametrize(
    "backend",
    [pytest.param("overlay", marks=pytest.mark.needs_overlay), pytest.param("fuse", marks=pytest.mark.needs_fuse)],
)
def test_what_was_written_to_a_container_survives_once_it_is_unmounted(
    disk: Disk, tmp_path: Path, backend: str
) -> None:
    root, target = disk.path / "store", tmp_path / "target"
    target.mkdir()
    with Store.open(root, runroot=tmp_path / "run") as store:
        store.load(_archive(tmp_path, IMAGE, "oci"))
        store.mount("cut:1", target, name="c", backend=backend)
        (target / "new").write_bytes(noise(50_000, "new"))
        os.chmod(target / "top", 0o600)
        (target / "d/0").unlink()
        store.umount("c")
    disk.cut()
    with Store.open(root, runroot=tmp_path / "run") as store:
        store.mount(None, target, name="c", backend=backend)
        try:
            assert (target / "new").read_bytes() == noise(50_000, "new")
            assert (target / "top").read_bytes() == EXPECTED[b"/top"]
            assert not (target / "d/0").exists()
        finally:
            store.umount("c")


def test_healing_survives(disk: Disk, tmp_path: Path) -> None:
    root = disk.path / "store"
    archive = _archive(tmp_path, IMAGE, "oci")
    with Store.open(root) as store:
        store.load(archive)
        victim = store.layers("cut:1")[0].diff_id
        os.truncate(store._handle.layout.layer_tar(victim), 5000)
    subprocess.run(load_command(root, archive), check=True, stdout=subprocess.DEVNULL)
    disk.cut()
    with Store.open(root) as store:
        assert contents(store, "cut:1") == EXPECTED
        assert_whole(store)


@pytest.mark.parametrize("number", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 30))])
def test_a_cut_in_the_middle_of_a_load(disk: Disk, tmp_path: Path, number: int) -> None:
    root = disk.path / "store"
    with Store.open(root) as store:
        store.load(_archive(tmp_path, BASE, "oci"))
    archive = _archive(tmp_path, IMAGE, "docker")
    lasting = time_of_load(disk.path / "measured", archive)
    process = subprocess.Popen(load_command(root, archive), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_until(lambda: is_loading(root), process)
    time.sleep(random.Random(number).uniform(0, 1.2) * lasting)
    done = process.poll() is not None
    disk.lose_power()
    process.kill()
    process.communicate()
    disk.restart()
    with Store.open(root) as store:
        names = [image.names for image in store.images()]
        assert ("docker.io/library/base:1",) in names
        assert not done or len(names) == 2
        assert not list(store.check())
        store.gc()
        assert_clean(store)
        assert contents(store, "base:1")[b"/base"] == noise(300_000, "base")
        store.load(archive)
        assert contents(store, "cut:1") == EXPECTED
        assert_whole(store)
