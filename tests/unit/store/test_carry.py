"""An image of many layers carries the bytes of the small ones in its merged tree, and nothing else changes by that."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import IntegrityError, LayerfsError
from layerfs.formats.digest import Digest
from layerfs.formats.erofs.reader import Tree
from layerfs.linux.durable import write_document
from layerfs.store import gc, ingest
from layerfs.store.carry import MANY
from layerfs.store.image import find_image, merged_tree
from tests.image_builder import TestImage, entry, layer, noise, oci, outer
from tests.store_audit import assert_whole, contents, tree_files

#: More than is carried of one file, and what several layers may lend each other.
LARGE = noise(70_000, "large")
SHARED = noise(5_000, "shared")
SMALL = noise(3_000, "small")
FILES = {f"f/{number}": noise(700 + 10 * number, number) for number in range(MANY + 4)}
LAYERS = [
    layer({"base": LARGE, "f/": b"", "shared": SHARED}),
    layer([entry("small", SMALL), entry("link", kind=b"1", link="small")]),
    *(layer({name: data}) for name, data in FILES.items()),
]
EXPECTED = {b"/base": LARGE, b"/f": b"type 40000", b"/shared": SHARED, b"/small": SMALL, b"/link": SMALL} | {
    b"/" + name.encode(): data for name, data in FILES.items()
}
DEEP = TestImage(LAYERS, ["deep:1"])


def _load(store: Store, *images: TestImage) -> None:
    for image in images:
        store.load(io.BytesIO(outer(oci(image))))


def _tree(store: Store, name: str = "deep:1") -> Tree:
    return merged_tree(store._handle, find_image(store._handle, name))


def _named(store: Store, name: str = "deep:1") -> list[bytes]:
    return [slot.tag for slot in _tree(store, name).devices]


def _tar(store: Store, number: int) -> Path:
    return Path(store._handle.layout.layer_tar(Digest.parse(DEEP.diff_ids[number])))


def test_only_the_large_layer_is_named(store: Store) -> None:
    _load(store, DEEP)
    assert _named(store) == [Digest.of(LAYERS[0]).hex.encode()]
    assert contents(store, "deep:1") == EXPECTED
    assert_whole(store)


def test_few_layers_are_all_named(store: Store) -> None:
    _load(store, TestImage(LAYERS[:MANY], ["few:1"]))
    assert len(_named(store, "few:1")) == MANY


def test_the_parts_of_a_file_that_is_carried(store: Store) -> None:
    _load(store, DEEP)
    with store.tree("deep:1") as tree:
        nid, data = tree.resolve(b"/f/3"), FILES["f/3"]
        assert [tree.read(nid, 10, 20), tree.read(nid, 700), tree.read(nid, len(data))] == [
            data[10:30],
            data[700:],
            b"",
        ]
        assert b"".join(tree.pieces(nid)) == data


def test_images_on_top_carry_the_same(store: Store, tmp_path: Path) -> None:
    more = TestImage([*LAYERS, layer({"top": b"top", "f/.wh.3": b""})], ["more:1"])
    _load(store, DEEP, more)  # made of the tree of the first
    with Store.open(tmp_path / "other", sync=False) as other:
        _load(other, more)  # and of all its layers
        trees = [
            os.fsencode(one._handle.layout.merged_tree(find_image(one._handle, "more:1").chain_id))
            for one in (store, other)
        ]
    assert Path(os.fsdecode(trees[0])).read_bytes() == Path(os.fsdecode(trees[1])).read_bytes()
    assert contents(store, "more:1") == {path: data for path, data in EXPECTED.items() if path != b"/f/3"} | {
        b"/top": b"top"
    }
    assert_whole(store)


def test_an_image_that_grows_beyond_the_limit(store: Store) -> None:
    few = TestImage(LAYERS[:MANY], ["few:1"])
    _load(store, few, DEEP)
    assert contents(store, "deep:1") == EXPECTED
    assert len(_named(store, "few:1")) == MANY
    assert len(_named(store)) == 1
    assert_whole(store)


def test_images_that_differ_in_what_they_carry(store: Store) -> None:
    other = TestImage([*LAYERS[:-1], layer({"f/19": bytes(len(FILES["f/19"]))})], ["other:1"])
    _load(store, DEEP, other)
    assert [step.path for step in store.steps("deep:1", "other:1")] == [b"/f", b"/f/19"]


def test_what_other_layers_lend_is_not_carried(store: Store) -> None:
    donor = TestImage([layer({"donor": SHARED})], ["donor:1"])
    _load(store, donor, DEEP)
    assert len(_named(store)) == 2
    assert contents(store, "deep:1") == EXPECTED
    store.remove_image("donor:1")
    assert contents(store, "deep:1") == EXPECTED
    assert_whole(store)


def test_a_layer_that_is_healed_is_carried_anew(store: Store) -> None:
    _load(store, DEEP)
    before = tree_files(Path(store.info().root))
    with open(_tar(store, 4), "r+b") as file:
        file.seek(512)
        file.write(b"damage")
    os.unlink(store._handle.layout.merged_tree(find_image(store._handle, "deep:1").chain_id))
    assert contents(store, "deep:1") != EXPECTED  # what nobody has checked, nobody knows to be damaged
    assert {problem.kind for problem in store.check()} >= {"layer"}
    _load(store, DEEP)
    assert contents(store, "deep:1") == EXPECTED
    assert tree_files(Path(store.info().root)) == before
    assert_whole(store)


def test_a_repair_does_not_take_over_what_a_layer_has_lost(store: Store) -> None:
    _load(store, DEEP)
    with open(_tar(store, 4), "r+b") as file:
        file.seek(512)
        file.write(b"damage")
    assert {problem.kind for problem in store.check(repair=True)} == {"layer"}
    assert contents(store, "deep:1") == EXPECTED


def test_a_load_that_died_while_it_healed_is_ended_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _load(store, DEEP)
    with open(_tar(store, 4), "r+b") as file:
        file.seek(512)
        file.write(b"damage")
    os.unlink(store._handle.layout.merged_tree(find_image(store._handle, "deep:1").chain_id))
    assert contents(store, "deep:1") != EXPECTED
    assert {problem.kind for problem in store.check()} >= {"layer"}

    def die(*_: object) -> None:
        raise OSError(errno.EIO, "killed")

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "rewrite_merged_trees", die)
        with pytest.raises(LayerfsError):
            _load(store, DEEP)
    _load(store, DEEP)
    assert contents(store, "deep:1") == EXPECTED
    assert_whole(store)


def test_a_full_disk_does_not_keep_a_layer_that_lends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _load(store, TestImage([layer({"donor": SHARED})], ["donor:1"]), DEEP)

    def full(path: str, data: bytes, **options: bool) -> None:
        if "/images/" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_document(path, data, **options)

    with monkeypatch.context() as patched:
        patched.setattr(gc, "write_document", full)
        store.remove_image("donor:1")
    assert len(store.usage().layers) == len(LAYERS)
    assert contents(store, "deep:1") == EXPECTED
    assert_whole(store)


def test_a_check_finds_a_byte_that_is_carried_wrong(store: Store) -> None:
    _load(store, DEEP)
    path = Path(store._handle.layout.merged_tree(find_image(store._handle, "deep:1").chain_id))
    whole = path.read_bytes()
    at = whole.index(FILES["f/5"])
    path.write_bytes(whole[:at] + b"x" + whole[at + 1 :])
    assert [(problem.kind, problem.repaired) for problem in store.check(repair=True)] == [("tree", True)]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 600)])
def test_a_tree_is_not_made_of_a_layer_that_is_gone(store: Store, damage: object) -> None:
    _load(store, DEEP)
    os.unlink(store._handle.layout.merged_tree(find_image(store._handle, "deep:1").chain_id))
    assert callable(damage)
    damage(_tar(store, 4))
    with pytest.raises(IntegrityError, match=r"missing|cut short"):
        contents(store, "deep:1")
    _load(store, DEEP)
    assert contents(store, "deep:1") == EXPECTED
