"""Removing images gives their space back, and takes nothing from others."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import NotFound
from layerfs.formats.digest import Digest
from layerfs.linux.lock import FileLock
from layerfs.store.gc import collect
from layerfs.store.handle import open_store
from layerfs.store.image import find_image
from layerfs.store.ingest import Ingest
from layerfs.store.snapshot import create_snapshot
from tests.image_builder import TestImage, docker_old, layer, noise, oci, outer, pipe, write_layout
from tests.store_audit import assert_clean, assert_whole, contents, disk, tree_files

SHARED = noise(100_000, "shared")
SECOND = noise(50_000, "second")


def _image(name: str, *tars: bytes) -> TestImage:
    return TestImage(tars, [f"{name}:1"])


DONOR = _image("donor", layer({"donor": SHARED, "other": SECOND, "own": noise(9000, 1)}))
ONE = _image("one", layer({"one": SHARED, "own": noise(9000, 2)}))
TWO = _image("two", layer({"two": SHARED, "second": SECOND, "twice": SHARED}))
STACK = _image("stack", DONOR.layers[0], ONE.layers[0], layer({"top": SECOND}))


def _load(store: Store, *images: TestImage) -> None:
    for image in images:
        store.load(pipe(outer(oci(image))))


@pytest.mark.parametrize("order", [["donor", "one", "two"], ["one", "two", "donor"], ["two", "donor", "one"]])
def test_borrowers_inherit_from_a_donor_that_is_removed(store: Store, order: list[str]) -> None:
    _load(store, DONOR, ONE, TWO)
    expected = {name: contents(store, f"{name}:1") for name in order}
    for name in order:
        store.remove_image(f"{name}:1")
        del expected[name]
        assert_whole(store)
        for left, files in expected.items():
            assert contents(store, f"{left}:1") == files
    assert not store.usage().layers
    assert disk(Path(store.info().root) / "layers") < 20_000
    assert not list((Path(store.info().root) / "blobs").glob("*/*"))
    assert not list((Path(store.info().root) / "images").glob("*/*"))


def test_the_last_borrower_holds_all_its_bytes(store: Store) -> None:
    _load(store, DONOR, ONE, TWO)
    store.remove_image("donor:1")
    assert store.usage().saved_by_files == 2 * len(SHARED)
    store.remove_image("one:1")
    assert store.usage().saved_by_files == len(SHARED)
    assert_whole(store)


def test_a_layer_that_another_image_has_stays(store: Store) -> None:
    _load(store, DONOR, STACK)
    store.remove_image("donor:1")
    assert_whole(store)
    assert contents(store, "stack:1")[b"/donor"] == SHARED
    store.remove_image("stack:1")
    assert not store.usage().layers


def test_what_was_inherited_is_offered_again(store: Store) -> None:
    _load(store, DONOR, ONE)
    store.remove_image("donor:1")
    _load(store, TWO)
    assert store.usage().saved_by_files == 2 * len(SHARED)
    assert_whole(store)


def test_trees_do_not_depend_on_what_was_there_before(store: Store, tmp_path: Path) -> None:
    """A store that had a donor and lost it is the same as one that never had it."""
    _load(store, DONOR, ONE)
    store.remove_image("donor:1")
    with Store.open(tmp_path / "fresh", sync=False) as fresh:
        _load(fresh, ONE)
        assert tree_files(tmp_path / "fresh") == tree_files(tmp_path / "store")


def test_an_open_tree_reads_on_while_its_image_is_removed(store: Store) -> None:
    _load(store, DONOR)
    with store.tree("donor:1") as tree:
        nid = tree.resolve(b"donor")
        assert tree.read(nid, 0, 10) == SHARED[:10]
        store.remove_image("donor:1")
        assert tree.read(nid) == SHARED


def test_names_that_move_leave_an_image_without_a_name(store: Store) -> None:
    _load(store, DONOR)
    _load(store, ONE.using(names=["donor:1"]))
    assert [image.names for image in store.images()] == [("docker.io/library/donor:1",), ()]
    store.remove_image(DONOR.id)
    assert_whole(store)
    assert contents(store, "donor:1")[b"/one"] == SHARED
    with pytest.raises(NotFound):
        store.resolve(DONOR.id)


def test_what_a_dead_load_left_is_removed(store: Store) -> None:
    root = Path(store.info().root)
    _load(store, DONOR)
    before = tree_files(root)
    (root / "ingest" / "dead" / "1").mkdir(parents=True)
    (root / "ingest" / "dead" / "1" / "layer.tar").write_bytes(noise(100_000))
    stray = root / "layers" / "sha256" / ("ab" * 32)
    stray.mkdir()
    (stray / "layer.tar").write_bytes(noise(100_000))
    (root / "images" / "sha256" / f".{'ab' * 32}.erofs.123456").write_bytes(b"cut short")
    (root / "images" / "sha256" / f"{'ab' * 32}.erofs").write_bytes(b"of no image")
    (root / "blobs" / "sha512" / ("ab" * 64)).write_bytes(b"of no image")
    connection = store._handle.database.connection
    connection.execute("INSERT INTO lease SELECT 'gone', id FROM layer")
    store.gc()
    assert tree_files(root) == before
    assert not list((root / "blobs" / "sha512").iterdir())
    assert_whole(store)
    store.remove_image("donor:1")
    assert_clean(store)
    assert not store.usage().layers


def test_a_live_load_is_left_alone(store: Store) -> None:
    root = Path(store.info().root)
    with Store.open(root, sync=False) as other, Ingest(other._handle) as ingest:
        _load(store, DONOR)
        pending = ingest.begin_layer(None)
        store.gc()
        assert os.listdir(root / "ingest") == [ingest.owner]
        assert pending is not None
    store.gc()
    assert_whole(store)


def test_gc_beside_gc_does_nothing(store: Store) -> None:
    _load(store, DONOR)
    with FileLock(Path(store.info().root) / "locks" / "ingest-gc"):
        store.remove_image("donor:1")
        assert len(list((Path(store.info().root) / "layers" / "sha256").iterdir())) == 1
    assert store.gc().size > 100_000
    assert_clean(store)


def test_loads_and_removals_side_by_side(store: Store, tmp_path: Path) -> None:
    """Four threads load and remove images that share layers and files; at the end everything that is left is whole."""
    images = [DONOR, ONE, TWO, STACK]
    layouts = [write_layout(tmp_path / f"layout{number}", oci(image)) for number, image in enumerate(images)]
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            with Store.open(tmp_path / "store", sync=False) as own:
                for turn in range(6):
                    mine = (number + turn) % len(images)
                    if turn % 2:
                        own.load(layouts[mine])
                    else:
                        own.load(pipe(outer(docker_old(images[mine]))))
                    with contextlib.suppress(NotFound):
                        own.remove_image(f"{('donor', 'one', 'two', 'stack')[(mine + turn) % 4]}:1")
        except Exception as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    store.gc()
    assert_whole(store)


def test_many_loads_do_not_pile_up_files(store: Store) -> None:
    """Loads use threads, and each has a connection of its own."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(12):
        _load(store, _image(f"i{number}", layer({"f": noise(5000, number)})))
    assert len(os.listdir("/proc/self/fd")) - before < 16


def test_the_directory_of_an_unpacked_image_goes_with_the_image(tmp_path: Path) -> None:
    handle = open_store(str(tmp_path / "store"), str(tmp_path / "run"), sync=False)
    try:
        gone = handle.layout.unpacked_merged(Digest.of(b"an image that was removed"))
        os.makedirs(os.path.join(gone, "etc"))
        collect(handle)
        assert not os.path.exists(gone)
    finally:
        handle.close()


def test_what_killed_processes_left_goes_and_is_counted(store: Store) -> None:
    root = Path(store.info().root)
    image = TestImage([layer({"f": noise(9000)})], ["a:1"])
    store.load(pipe(outer(oci(image))))
    kept = create_snapshot(store._handle, find_image(store._handle, "a:1"), "kept")
    left = [root / "snapshots" / ("a" * 64), root / "unpacked/sha256/.unpack-0123", root / "ingest/dead"]
    busy = root / "snapshots" / ("b" * 64)
    for path in (*left, busy):
        (path / "upper").mkdir(parents=True)
        (path / "upper/file").write_bytes(noise(50_000))
    with FileLock(store._handle.layout.lock(f"snapshot-{busy.name}")):
        assert store.gc().size >= 150_000
        assert not any(path.exists() for path in left)
        assert (busy / "upper/file").exists()  # somebody is making or removing it
    assert store.gc().size >= 50_000
    assert not busy.exists()
    assert store.gc().size == 0
    assert [container.id for container in store.containers()] == [kept.id]
    assert (root / "snapshots" / kept.id / "upper").is_dir()
