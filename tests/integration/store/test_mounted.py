"""Stores under live mounts, on read-only file systems, and with images that other tools made."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import StoreReadOnly
from layerfs.formats.digest import Digest
from tests.image_builder import TestImage, layer, noise, oci, outer, pipe, write_layout
from tests.integration.store.conftest import Mount
from tests.store_audit import assert_whole, contents, tree_files

pytestmark = pytest.mark.needs_root

SHARED = noise(400_000, "shared")
DONOR = TestImage([layer({"donor": SHARED, "x": noise(9000)})], ["donor:1"])
BORROWER = TestImage([layer({"copy": SHARED, "y": noise(9000, 1)})], ["borrower:1"])

_REAL = Path("~/.cache/layerfs/corpus/demo").expanduser()


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


@pytest.mark.slow
def test_a_real_image_in_every_form(tmp_path: Path) -> None:
    if not (_REAL / "docker.tar").exists():
        pytest.skip("no image of Debian packages here; make demo makes one")
    sources: list[Path] = [_REAL / "oci", _REAL / "oci.tar", _REAL / "docker.tar"]
    trees = []
    for number, source in enumerate(sources):
        root = tmp_path / f"store{number}"
        with Store.open(root, sync=False) as store:
            if number:
                with open(source, "rb") as file:
                    (image,) = store.load(file)
            else:
                (image,) = store.load(source)
            assert_whole(store)
            for row in store.layers(image):
                hasher = hashlib.new(row.diff_id.algorithm)
                for piece in store.read_layer(row.diff_id):
                    hasher.update(piece)
                assert hasher.hexdigest() == row.diff_id.hex
            # Which layer holds what several have depends on the archive's order, so only names are compared.
            assert contents(store, image)
            trees.append(set(tree_files(root)))
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            with Store.open(tmp_path / "again", sync=False) as again:
                again.load(source)
            assert set(tree_files(tmp_path / "again")) == trees[-1]
        shutil.rmtree(root)
    assert trees[0] == trees[1] == trees[2]


def test_a_layout_that_is_loaded_twice_is_the_same(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", oci(BORROWER, DONOR))
    found = []
    for number in range(2):
        with Store.open(tmp_path / f"store{number}", sync=bool(number)) as store:
            store.load(layout)
        found.append(tree_files(tmp_path / f"store{number}"))
    assert found[0] == found[1]


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")
