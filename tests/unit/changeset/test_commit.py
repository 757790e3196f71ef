"""Commits that nobody mounts: names, empty changes, trees that are made later, a store that collects."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.changeset import commit as module
from layerfs.errors import Conflict
from layerfs.store.image import find_image
from layerfs.store.snapshot import create_snapshot
from tests.image_builder import TestImage, docker_old, layer, noise, outer, pipe
from tests.store_audit import assert_clean, assert_whole, contents

SHARED = noise(60_000, "shared")
DONOR = TestImage([layer({"donor": SHARED})], ["donor:1"])
BASE = TestImage([layer({"etc/": b"", "etc/one": SHARED, "etc/gone": b"gone"})], ["base:1"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", sync=False) as opened:
        opened.load(pipe(outer(docker_old(DONOR))))
        opened.load(pipe(outer(docker_old(BASE))))
        yield opened


def _upper(store: Store, name: str = "box") -> Path:
    """Make a container that was mounted once; return its writable layer."""
    snapshot = create_snapshot(store._handle, find_image(store._handle, "base:1"), name)
    place = Path(store._handle.layout.snapshot(snapshot.id))
    with store.tree("base:1") as tree:
        root = tree.inode(tree.root)
    os.chmod(place / "upper", root.mode & 0o7777)
    os.utime(place / "upper", ns=(0, root.mtime * 10**9 + root.mtime_ns))
    (place / "dressed").touch()
    return place / "upper"


def test_nothing_changed_makes_no_layer(store: Store) -> None:
    if os.geteuid():
        pytest.skip("the root directory would have another owner")
    _upper(store)
    image = store.commit("box", "same")
    assert image.layers == 1
    assert image.chain_id == store.resolve("base:1").chain_id
    assert store.history("same")[0].diff_id is None
    assert_clean(store)


def test_a_tree_that_is_made_later_survives_a_collection(store: Store) -> None:
    upper = _upper(store)
    (upper / "new").write_bytes(noise(5000, "new"))
    image = store.commit("box", "made")
    assert_clean(store)
    store.remove_image("donor:1")
    assert_whole(store)
    assert contents(store, image)[b"/etc/one"] == SHARED
    assert contents(store, image)[b"/new"] == noise(5000, "new")
    store.remove_container("box")
    store.remove_image("base:1")
    assert contents(store, image)[b"/etc/one"] == SHARED
    assert_whole(store)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_layer_is_kept_for_the_manifest(store: Store, tmp_path: Path, compression: str) -> None:
    upper = _upper(store)
    (upper / "new").write_bytes(b"n" * 9000)
    image = store.commit("box", "made", compression=compression)
    blob = store.manifest(image).layers[-1]
    assert blob.media_type.endswith(f"tar+{compression}")
    (saved,) = store.save(["made"], tmp_path / "saved.tar", form="oci-archive")
    assert saved.manifest == image.manifest_digest
    with Store.open(tmp_path / "other", sync=False) as other:
        (again,) = other.load(tmp_path / "saved.tar")
        assert contents(other, again) == contents(store, image)
    assert_whole(store)


def test_times_after_the_limit_become_the_limit(store: Store) -> None:
    upper = _upper(store)
    (upper / "new").write_text("x")
    image = store.commit("box", "made", latest=1000)
    with store.tree(image) as tree:
        assert tree.inode(tree.resolve(b"/new")).mtime == 1000
    assert image.created is not None
    assert image.created >= 1000 * 10**9


def test_a_container_that_is_written_to_all_the_time_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upper = _upper(store)
    (upper / "new").write_text("x")
    monkeypatch.setattr("layerfs.mount.in_use.why_mounted", _mounted)
    from layerfs.changeset.layer_tar import write_layer as original

    def write_and_disturb(*args: object, **options: object) -> Iterator[bytes]:
        with (upper / "new").open("a") as file:
            file.write("y")
        yield from original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_layer", write_and_disturb)
    with pytest.raises(Conflict, match="written to each of the 3 times"):
        store.commit("box", "made")
    monkeypatch.setattr(module, "write_layer", original)
    assert store.commit("box", "made").layers == 2
    assert_clean(store)


def test_what_is_committed_is_a_state_that_the_container_had(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files are always written one after the other; the second never has a newer number than the first."""
    upper = _upper(store)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for name in ("first", "second"):
                (upper / f".{name}").write_text(str(number))
                (upper / f".{name}").rename(upper / name)
            stop.wait(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    monkeypatch.setattr("layerfs.mount.in_use.why_mounted", _mounted)
    try:
        made = 0
        for attempt in range(20):
            try:
                image = store.commit("box", f"made{attempt}")
            except Conflict:
                continue
            found = contents(store, image)
            numbers = [int(found.get(path, b"0") or b"0") for path in (b"/first", b"/second")]
            assert 0 <= numbers[0] - numbers[1] <= 1
            made += 1
    finally:
        stop.set()
        writer.join()
    assert made, "a container that rests now and then can be committed"


def _mounted(*_: object) -> Conflict:
    return Conflict("container box is mounted", reason="mounted")
