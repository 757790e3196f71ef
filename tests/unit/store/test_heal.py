"""Loading an image again heals what is damaged, and only that."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from layerfs.api import Store
from layerfs.errors import IntegrityError, LayerfsError, StoreError, StoreReadOnly
from layerfs.formats.digest import Digest
from layerfs.store import ingest
from tests.image_builder import TestImage, docker_old, entry, layer, noise, oci, outer, pipe, write_layout
from tests.store_audit import assert_clean, assert_whole, contents, tree_files

SHARED = noise(100_000, "shared")
DONOR = TestImage([layer({"donor": SHARED, "own": noise(20_000, 1)})], ["donor:1"])
BORROWER = TestImage([layer({"mine": noise(20_000, 2), "borrowed": SHARED, "again": SHARED})], ["borrower:1"])
BOTH = TestImage([DONOR.layers[0], BORROWER.layers[0]], ["both:1"])

Source = Callable[[Path, TestImage], "BinaryIO | Path"]


def _layout(folder: Path, image: TestImage) -> Path:
    path = folder / f"layout-{image.id[7:]}"
    return path if path.exists() else write_layout(path, oci(image))


def _oci_pipe(folder: Path, image: TestImage) -> BinaryIO:
    return pipe(outer(oci(image)))


def _docker_pipe(folder: Path, image: TestImage) -> BinaryIO:
    return pipe(outer(docker_old(image)))


SOURCES = [_layout, _oci_pipe, _docker_pipe]


def _tar(store: Store, image: TestImage, number: int = 0) -> Path:
    return Path(store._handle.layout.layer_tar(Digest.parse(image.diff_ids[number])))


def _tree(store: Store, image: TestImage, number: int = 0) -> Path:
    return Path(store._handle.layout.layer_tree(Digest.parse(image.diff_ids[number])))


def _truncate(store: Store, image: TestImage) -> None:
    os.truncate(_tar(store, image), 3000)


def _truncate_to_nothing(store: Store, image: TestImage) -> None:
    os.truncate(_tar(store, image), 0)


def _zero_blocks(store: Store, image: TestImage) -> None:
    """As after a power cut: the right size, and zeros."""
    with open(_tar(store, image), "r+b") as file:
        size = file.seek(0, 2)
        file.truncate(0)
        file.truncate(size)


def _overwrite(store: Store, image: TestImage) -> None:
    with open(_tar(store, image), "r+b") as file:
        file.seek(2000)
        file.write(b"damage")


def _delete_tar(store: Store, image: TestImage) -> None:
    _tar(store, image).unlink()


def _delete_tree(store: Store, image: TestImage) -> None:
    _tree(store, image).unlink()


def _corrupt_tree(store: Store, image: TestImage) -> None:
    raw = bytearray(_tree(store, image).read_bytes())
    raw[1030] ^= 0xFF
    _tree(store, image).write_bytes(raw)


def _empty_tree(store: Store, image: TestImage) -> None:
    os.truncate(_tree(store, image), 0)


def _delete_layer(store: Store, image: TestImage) -> None:
    shutil.rmtree(_tar(store, image).parent)


def _layer_is_a_file(store: Store, image: TestImage) -> None:
    shutil.rmtree(_tar(store, image).parent)
    _tar(store, image).parent.write_bytes(b"what")


DAMAGES = [
    _truncate,
    _truncate_to_nothing,
    _zero_blocks,
    _overwrite,
    _delete_tar,
    _delete_tree,
    _corrupt_tree,
    _empty_tree,
    _delete_layer,
    _layer_is_a_file,
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_layer_is_healed(
    store: Store, tmp_path: Path, source: Source, damage: Callable[[Store, TestImage], None]
) -> None:
    store.load(source(tmp_path, DONOR))
    before = tree_files(tmp_path / "store")
    damage(store, DONOR)
    assert list(store.check())
    store.load(source(tmp_path, DONOR))
    assert tree_files(tmp_path / "store") == before
    assert_whole(store)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_donor_is_healed_with_its_own_image(
    store: Store, tmp_path: Path, source: Source, damage: Callable[[Store, TestImage], None]
) -> None:
    for image in (DONOR, BORROWER, BOTH):
        store.load(source(tmp_path, image))
    assert store.usage().saved_by_files == 2 * len(SHARED)
    before = tree_files(tmp_path / "store")
    damage(store, DONOR)
    store.load(source(tmp_path, DONOR))
    assert tree_files(tmp_path / "store") == before
    assert contents(store, "borrower:1")[b"/borrowed"] == SHARED
    assert_whole(store)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_borrower_is_healed_when_its_donor_is_damaged(
    store: Store, tmp_path: Path, source: Source, damage: Callable[[Store, TestImage], None]
) -> None:
    """Also when the archive at hand does not have the donor at all."""
    for image in (DONOR, BORROWER):
        store.load(source(tmp_path, image))
    damage(store, DONOR)
    store.load(source(tmp_path, BORROWER))
    assert contents(store, "borrower:1") == {
        b"/mine": noise(20_000, 2), b"/borrowed": SHARED, b"/again": SHARED,
    }  # fmt: skip
    store.remove_image("donor:1")
    assert_whole(store)
    assert contents(store, "borrower:1")[b"/again"] == SHARED


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_healed_borrower_keeps_nothing_of_its_donor(
    store: Store, tmp_path: Path, source: Source, damage: Callable[[Store, TestImage], None]
) -> None:
    other = TestImage([BORROWER.layers[0], layer({"top": b"top"})], ["other:1"])
    for image in (DONOR, BORROWER, other):
        store.load(source(tmp_path, image))
    damage(store, BORROWER)
    store.load(source(tmp_path, BORROWER))
    assert_whole(store)
    store.remove_image("donor:1")
    assert_whole(store)
    for name in ("borrower:1", "other:1"):
        assert contents(store, name)[b"/borrowed"] == SHARED


@pytest.mark.parametrize("source", SOURCES)
def test_all_layers_of_an_image_damaged(store: Store, tmp_path: Path, source: Source) -> None:
    for image in (DONOR, BORROWER, BOTH):
        store.load(source(tmp_path, image))
    _delete_layer(store, DONOR)
    _overwrite(store, BORROWER)
    with pytest.raises(LayerfsError):
        for layer_row in store.layers("both:1"):
            store.verify_layer(layer_row.diff_id)
    store.load(source(tmp_path, BOTH))
    assert_whole(store)
    for name, path in (("donor:1", b"/donor"), ("borrower:1", b"/again"), ("both:1", b"/borrowed")):
        assert contents(store, name)[path] == SHARED


@pytest.mark.parametrize("source", SOURCES)
def test_a_layer_that_was_only_touched_is_kept(store: Store, tmp_path: Path, source: Source) -> None:
    for image in (DONOR, BORROWER):
        store.load(source(tmp_path, image))
    inode = _tar(store, DONOR).stat().st_ino
    for path in (_tar(store, DONOR), _tree(store, DONOR)):
        os.utime(path)
    (problem,) = store.check()
    assert "touched" in problem.message
    store.load(_layout(tmp_path, BORROWER))
    store.load(_layout(tmp_path, DONOR))
    assert _tar(store, DONOR).stat().st_ino == inode
    assert store.usage().saved_by_files == 2 * len(SHARED)
    assert_whole(store)


@pytest.mark.parametrize("source", SOURCES)
def test_a_merged_tree_is_made_again(store: Store, tmp_path: Path, source: Source) -> None:
    (image,) = store.load(source(tmp_path, BOTH))
    before = tree_files(tmp_path / "store")
    path = Path(store._handle.layout.merged_tree(image.chain_id))
    for size in (None, 0, 700):

        def damage(size: int | None = size) -> None:
            path.unlink() if size is None else os.truncate(path, size)

        damage()
        # What is not there, or empty after a power cut, is made when it is needed.
        assert [problem.kind for problem in store.check()] == (["tree"] if size else [])
        assert contents(store, image)[b"/borrowed"] == SHARED
        damage()
        store.load(source(tmp_path, BOTH))
        assert tree_files(tmp_path / "store") == before
    os.truncate(path, 700)
    assert [problem.repaired for problem in store.check(repair=True)] == [True]
    assert tree_files(tmp_path / "store") == before


@pytest.mark.parametrize("source", SOURCES)
def test_a_merged_tree_with_another_byte_goes_into_no_other_image(store: Store, tmp_path: Path, source: Source) -> None:
    longer = TestImage([*BOTH.layers, layer({"more": b"more"})], ["longer:1"])
    (image,) = store.load(source(tmp_path, BOTH))
    path = Path(store._handle.layout.merged_tree(image.chain_id))
    good = path.read_bytes()
    path.write_bytes(good.replace(b"borrowed", b"barrowed"))
    assert b"/barrowed" in contents(store, image)
    (other,) = store.load(source(tmp_path, longer))
    assert contents(store, other)[b"/borrowed"] == SHARED
    store.load(source(tmp_path, BOTH))  # and is healed like a layer
    assert path.read_bytes() == good
    assert_whole(store)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["config", "manifest"])
def test_a_document_is_healed(store: Store, tmp_path: Path, source: Source, kind: str) -> None:
    (image,) = store.load(source(tmp_path, DONOR))
    path = Path(store._handle.layout.blob(image.id if kind == "config" else image.manifest_digest))
    raw = path.read_bytes()
    for damaged in (None, b"", raw[:-1], raw.replace(b"a", b"b")):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        assert [problem.kind for problem in store.check()] == ["document"]
        with pytest.raises(StoreError, match="missing or damaged"):
            _ = store.config("donor:1") if kind == "config" else store.manifest("donor:1")
        store.load(source(tmp_path, DONOR))
        assert_whole(store)


def test_a_damaged_image_does_not_hide_the_others(store: Store, tmp_path: Path) -> None:
    for image in (DONOR, BORROWER):
        store.load(_layout(tmp_path, image))
    _delete_layer(store, DONOR)
    assert len(store.images()) == 2
    with pytest.raises(IntegrityError):
        contents(store, "borrower:1")
    other = TestImage([layer({"other": noise(5000)})], ["other:1"])
    store.load(_layout(tmp_path, other))
    assert contents(store, "other:1")
    store.remove_image("other:1")
    # What borrows from the layer that is gone cannot inherit from it: it stays known until the borrower is healed.
    store.remove_image("donor:1")
    store.load(_layout(tmp_path, BORROWER))
    store.gc()
    assert_whole(store)
    assert [row.size for row in store.usage().layers] == [len(BORROWER.layers[0])]


def test_repair_restores_trees(store: Store, tmp_path: Path) -> None:
    store.load(_layout(tmp_path, BOTH))
    before = tree_files(tmp_path / "store")
    _delete_tree(store, DONOR)
    _corrupt_tree(store, BORROWER)
    problems = list(store.check(repair=True))
    assert problems
    assert tree_files(tmp_path / "store") == before
    assert_whole(store)


def test_bytes_that_were_damaged_are_no_offer(store: Store, tmp_path: Path) -> None:
    store.load(_layout(tmp_path, DONOR))
    _overwrite(store, DONOR)
    store.load(_layout(tmp_path, BORROWER))
    assert contents(store, "borrower:1")[b"/borrowed"] == SHARED
    assert store.usage().saved_by_files == len(SHARED)  # only from itself


def test_a_healing_load_that_fails_leaves_what_was_there(store: Store, tmp_path: Path) -> None:
    for image in (DONOR, BORROWER):
        store.load(_layout(tmp_path, image))
    with open(_tar(store, DONOR), "r+b") as file:
        file.seek(150_000)  # behind what is borrowed
        file.write(b"x")
    with pytest.raises(LayerfsError):
        store.load(pipe(outer(docker_old(DONOR.using(codec="none")))[:90_000]))
    assert contents(store, "borrower:1")[b"/borrowed"] == SHARED
    store.load(_docker_pipe(tmp_path, DONOR))
    assert_whole(store)


def test_duplicates_that_borrow_survive_their_donor(store: Store, tmp_path: Path) -> None:
    """A hole whose file is replaced later in the same layer belongs to no name, and still to the tar."""
    first = TestImage([layer({"s": SHARED})], ["first:1"])
    twice = layer([entry("f", SHARED), entry("f", b"last"), entry("g", noise(9000))])
    second = TestImage([twice], ["second:1"])
    third = TestImage([layer([entry("f", SHARED), entry("f", b"other")])], ["third:1"])
    for image in (first, second, third):
        store.load(_layout(tmp_path, image))
    assert store.usage().saved_by_files == 2 * len(SHARED)
    assert_whole(store)
    store.remove_image("first:1")
    assert store.usage().saved_by_files == len(SHARED)
    assert_whole(store)
    store.remove_image("second:1")
    assert_whole(store)


def test_rot_that_only_a_check_sees_is_healed_after_it(store: Store, tmp_path: Path) -> None:
    """Size and times are right, so nothing but reading everything finds it."""
    store.load(_layout(tmp_path, DONOR))
    path = _tar(store, DONOR)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(3000)
        file.write(b"rot")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.load(_layout(tmp_path, DONOR))
    (problem,) = store.check()
    assert problem.kind == "layer"
    store.load(_layout(tmp_path, DONOR))
    assert_whole(store)


def test_what_cannot_be_cleaned_up_keeps_nobody_waiting(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that fails lets go of its locks and leases, whatever else goes wrong then."""
    layout, under_way = _layout(tmp_path, BOTH), Path(store._handle.layout.ingest)

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def stop() -> None:
        if list(under_way.glob("*/1")):
            raise RuntimeError("mine")

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "remove_tree", fail)
        with pytest.raises(RuntimeError, match="mine"):
            store.load(layout, check=stop)
    assert list(under_way.iterdir())
    store.load(layout)
    assert_clean(store)


def test_a_thread_that_cannot_open_the_database_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", fail)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(StoreError, match="unable to open") as caught:
            pool.submit(store.images).result()
        assert isinstance(caught.value, StoreReadOnly)
        few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        try:
            with pytest.raises(StoreError, match="Too many open files") as caught:
                pool.submit(store.images).result()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    assert not isinstance(caught.value, StoreReadOnly)
