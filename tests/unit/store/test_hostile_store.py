"""What hostile archives, damaged disks and other processes must not do to a store."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import LayerfsError, LimitExceeded, NotFound
from layerfs.formats.digest import Digest
from layerfs.store import layer_writer
from layerfs.store.image import find_image, merged_tree
from layerfs.store.ingest import Ingest
from tests.image_builder import TestImage, entry, layer, noise, oci, outer
from tests.store_audit import assert_whole, contents

SHARED = noise(50_000, "shared")


def _load(store: Store, *images: TestImage) -> None:
    for image in images:
        store.load(io.BytesIO(outer(oci(image))))


def _tar(store: Store, tar: bytes) -> Path:
    return Path(store._handle.layout.layer_tar(Digest.of(tar)))


def test_no_name_takes_the_place_of_an_id(store: Store) -> None:
    good = TestImage([layer({"good": b"1"})], ["good:1"])
    _load(store, good)
    hexadecimal = good.id.removeprefix("sha256:")
    bad = TestImage(
        [layer({"bad": b"2"})], [f"localhost/{hexadecimal}:latest", f"docker.io/library/sha256:{hexadecimal}"]
    )
    _load(store, bad)
    for text in (good.id, hexadecimal):
        assert str(store.resolve(text).id) == good.id
    assert str(store.resolve(hexadecimal[:12]).id) == good.id
    assert contents(store, store.resolve(good.id)) == {b"/good": b"1"}


def test_a_tree_reads_on_when_a_layer_that_lends_goes(store: Store) -> None:
    _load(store, TestImage([layer({"donor": SHARED})], ["donor:1"]), TestImage([layer({"copy": SHARED})], ["copy:1"]))
    with store.tree("copy:1") as tree:
        store.remove_image("donor:1")
        assert tree.read(tree.resolve(b"/copy")) == SHARED
    assert_whole(store)


@pytest.mark.parametrize("damage", ["data", "hole"])
def test_damage_in_a_sparse_file_is_found(store: Store, tmp_path: Path, damage: str) -> None:
    sparse = tmp_path / "in" / "sparse"
    sparse.parent.mkdir()
    with sparse.open("wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(SHARED)
    subprocess.run(["tar", "--sparse", "-cf", tmp_path / "layer.tar", "-C", tmp_path / "in", "."], check=True)
    image = TestImage([(tmp_path / "layer.tar").read_bytes()], ["sparse:1"])
    _load(store, image)
    assert not list(store.check())
    with store.tree("sparse:1") as tree:
        place = tree.place(tree.resolve(b"/sparse"))
    assert place is not None
    with open(place[0], "r+b") as file:
        file.seek(place[1] + (1 << 20 if damage == "data" else 4096))
        file.write(b"ZZZZ")
    for repair in (False, True):
        assert [(problem.kind, problem.repaired) for problem in store.check(repair=repair)] == [("layer", False)]
    _load(store, image)
    assert_whole(store)
    assert contents(store, "sparse:1")[b"/sparse"] == sparse.read_bytes()


def test_a_layer_that_cannot_be_ended_holds_nothing(store: Store) -> None:
    many = {f"user.{number}": bytes([number % 256]) * 500 for number in range(600)}
    bad = layer([entry("f", b"x", xattrs=many)])
    before = len(os.listdir("/proc/self/fd"))
    with Ingest(store._handle) as ingest:
        for _ in range(2):  # the second time it would wait for its own lock
            pending = ingest.begin_layer(Digest.of(bad))
            pending.writer.write(bad)  # type: ignore[union-attr]
            with pytest.raises(LimitExceeded):
                ingest.finish_layer(pending, Digest.of(bad), None)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_layer_that_cannot_be_begun_holds_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Digest.of(b"any")
    with Ingest(store._handle) as ingest:
        with monkeypatch.context() as patched:
            patched.setattr(os, "mkdir", _full)
            with pytest.raises(OSError, match="No space"):
                ingest.begin_layer(digest)
        ingest.abandon(ingest.begin_layer(digest))  # type: ignore[arg-type]


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_tree_of_an_image_that_is_gone_is_not_made(store: Store) -> None:
    tar = layer({"f": b"1"})
    one, two = TestImage([tar], ["a:1"]), TestImage([tar], ["a:2"], extra={"author": "somebody"})
    _load(store, one, two)
    gone = find_image(store._handle, "a:1")
    store.remove_image("a:1")
    os.unlink(store._handle.layout.merged_tree(gone.chain_id))
    with pytest.raises(NotFound):
        merged_tree(store._handle, gone)
    assert contents(store, "a:2") == {b"/f": b"1"}


def test_a_strange_directory_among_the_layers(store: Store, tmp_path: Path) -> None:
    _load(store, TestImage([layer({"f": b"1"})], ["a:1"]))
    (tmp_path / "store/layers/sha256/lost+found").mkdir()
    store.remove_image("a:1")
    assert store.gc().layers == ()


def test_a_file_system_without_holes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(layer_writer, "punch_hole", refused)
    large = noise(3 << 20, "large")
    _load(store, TestImage([layer({"one": large, "two": large})], ["a:1"]))
    assert contents(store, "a:1") == {b"/one": large, b"/two": large}
    assert_whole(store)


def test_a_check_beside_removals(store: Store) -> None:
    for number in range(3):
        _load(store, TestImage([layer({"f": noise(5000, number)})], [f"a:{number}"]))
    removed: list[bool] = []

    def remove() -> None:
        if not removed:
            removed.append(True)
            store.remove_image("a:1")
            store.remove_image("a:2")

    assert list(store.check(check=remove)) == []


def test_what_a_damaged_layer_was_unpacked_to_is_set_aside(store: Store) -> None:
    image = TestImage([layer({"f": SHARED})], ["a:1"])
    _load(store, image)
    unpacked = Path(store._handle.layout.unpacked(Digest.of(image.layers[0])))
    unpacked.mkdir()
    (unpacked / "f").write_bytes(b"damage")
    os.utime(_tar(store, image.layers[0]))
    _load(store, image)  # only touched
    assert unpacked.exists()
    held = os.open(unpacked / "f", os.O_RDONLY)
    os.truncate(_tar(store, image.layers[0]), 1000)
    _load(store, image)
    assert not unpacked.exists()
    (aside,) = unpacked.parent.iterdir()  # it may be mounted somewhere
    assert (aside / "f").read_bytes() == b"damage"
    os.close(held)
    store.remove_image("a:1")
    assert not list(unpacked.parent.iterdir())


def test_an_archive_whose_first_name_looks_like_a_compression(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(entry("BZhello", b"1") + outer(oci(TestImage([layer({"f": b"1"})], ["a:1"]))))
    assert [str(image.names[0]) for image in store.load(path)] == ["docker.io/library/a:1"]


@pytest.mark.parametrize("settings", [{"Env": [1]}, {"Env": 5}, {"Labels": ["x"]}, {"OnBuild": 5}, {"ExposedPorts": 3}])
def test_a_config_of_other_types_is_refused_when_it_is_changed(store: Store, settings: dict[str, object]) -> None:
    from layerfs.formats.amend import amend_settings

    words = {"Env": "ENV A=b", "Labels": "LABEL a=b", "OnBuild": "ONBUILD RUN x", "ExposedPorts": "EXPOSE 80"}
    with pytest.raises(LayerfsError):
        amend_settings(dict(settings), words[next(iter(settings))])
