"""What lies in several layers or images is stored once, and every layer still reads back byte for byte."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from layerfs.api import Store
from layerfs.formats.digest import Digest
from layerfs.store.image import find_image, merged_tree
from layerfs.store.layer import verify_layer
from tests.image_builder import Members, TestImage, docker_new, docker_old, layer, noise, oci, outer, write_layout
from tests.store_audit import assert_whole, contents, disk, tree_files

BIG = noise(300_000, "big")
EDGE = noise(4096, "edge")
BELOW = noise(4095, "below")


def _load(store: Store, *images: TestImage) -> None:
    store.load(io.BytesIO(outer(oci(*images))))


def test_a_layer_of_two_images_is_stored_once(store: Store) -> None:
    base = layer({"base": BIG})
    one = TestImage([base, layer({"one": b"1"})], ["one:1"])
    two = TestImage([base, layer({"two": b"2"})], ["two:1"])
    _load(store, one)
    before = disk(Path(store.info().root) / "layers")
    _load(store, two)
    usage = store.usage()
    assert len(usage.layers) == 3
    assert usage.saved_by_layers == len(base)
    assert disk(Path(store.info().root) / "layers") - before < 60_000
    assert [row.images for row in store.layers("one:1")] == [2, 1]
    assert_whole(store)


def test_a_merged_tree_names_only_the_layers_that_can_be_seen(store: Store) -> None:
    hidden, seen, removes, borrows = (
        layer({"hidden": BIG}),
        layer({"seen": BELOW}),
        layer({".wh.hidden": b"", "directory/": b""}),
        layer({"borrowed": BIG}),
    )
    _load(store, TestImage([hidden, seen, removes], ["one:1"]), TestImage([hidden, seen, removes, borrows], ["two:1"]))
    ids = [Digest.of(tar).hex.encode() for tar in (hidden, seen, removes, borrows)]
    found = {}
    for name in ("one:1", "two:1"):
        record = find_image(store._handle, name)
        found[name] = [slot.tag for slot in merged_tree(store._handle, record).devices]
    assert found == {"one:1": ids[1:2], "two:1": ids[:2]}  # the bytes of "borrowed" lie where they came first
    assert_whole(store)


def test_a_file_in_two_layers_is_stored_once(store: Store) -> None:
    one = TestImage([layer({"a/": b"", "a/big": BIG, "a/edge": EDGE, "a/below": BELOW})], ["one:1"])
    two = TestImage([layer({"x": b"", "big2": BIG, "edge2": EDGE, "below2": BELOW, "again": BIG})], ["two:1"])
    _load(store, one)
    before = disk(Path(store.info().root) / "layers")
    _load(store, two)
    usage = store.usage()
    assert usage.saved_by_files == 2 * len(BIG) + len(EDGE)
    borrower = next(row for row in usage.layers if row.borrowed)
    assert borrower.disk < len(BELOW) + 40_000
    assert disk(Path(store.info().root) / "layers") - before < 80_000
    assert store.layers("two:1")[0].shared_size == usage.saved_by_files
    assert contents(store, "two:1") == {
        b"/x": b"", b"/big2": BIG, b"/edge2": EDGE, b"/below2": BELOW, b"/again": BIG,
    }  # fmt: skip
    assert_whole(store)


def test_a_file_that_spans_pieces_is_shared_too(store: Store) -> None:
    large = noise(3 * (1 << 20) + 4321, "large")
    one = TestImage([layer({"first": noise(700_000), "large": large})], ["one:1"])
    two = TestImage([layer({"z": noise(999_999, 3), "large": large, "after": b"tail"})], ["two:1"])
    _load(store, one, two)
    assert store.usage().saved_by_files == len(large)
    assert contents(store, "two:1")[b"/large"] == large
    assert_whole(store)


def test_read_layer_gives_back_the_tar(store: Store) -> None:
    tars = [layer({"a": BIG, "b": b"x"}), layer({"c": BIG}), layer({"d": BIG, "e": EDGE}, end=False)]
    image = TestImage(tars, ["t:1"])
    _load(store, image)
    for row, tar in zip(store.layers("t:1"), image.layers, strict=True):
        read = b"".join(store.read_layer(row.diff_id))
        assert read == tar
        assert hashlib.sha256(read).hexdigest() == row.diff_id.hex


@pytest.mark.parametrize("make", [oci, docker_old, docker_new])
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_the_same_image_makes_the_same_bytes(
    store: Store, tmp_path: Path, make: Callable[[TestImage], Members], codec: str
) -> None:
    """Whatever the form of the archive and its compression, as long as layers come in the image's order."""
    image = TestImage([layer({"a": BIG, "n": noise(50_000, 4)}), layer({"c": BIG, "d": EDGE, "e": b"small"})], ["t:1"])
    store.load(write_layout(tmp_path / "layout", oci(image)))
    expected = tree_files(tmp_path / "store")
    assert len(expected) == 5
    archive = outer(make(image.using(codec=codec)))
    (tmp_path / "file").write_bytes(archive)
    sources: list[BinaryIO | Path] = [
        io.BytesIO(archive),
        tmp_path / "file",
        write_layout(tmp_path / "other", make(image.using(codec=codec))),
    ]
    for number, source in enumerate(sources):
        with Store.open(tmp_path / f"store{number}", sync=False) as other:
            other.load(source)
        assert tree_files(tmp_path / f"store{number}") == expected


def test_one_layer_twice_in_an_image(store: Store) -> None:
    tar = layer({"a": BIG})
    image = TestImage([tar, layer({"b": b"b"}), tar], ["t:1"])
    for source in (outer(docker_old(image)), outer(oci(image))):
        store.load(io.BytesIO(source))
        assert contents(store, "t:1") == {b"/a": BIG, b"/b": b"b"}
        assert_whole(store)


def test_verify_layer_finds_a_changed_byte(store: Store) -> None:
    _load(store, TestImage([layer({"a": BIG})], ["t:1"]))
    row = store.layers("t:1")[0]
    store.verify_layer(row.diff_id)
    path = Path(store._handle.layout.layer_tar(row.diff_id))
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw)
    record = store._layer(row.diff_id)
    with pytest.raises(Exception, match="digest is"):
        verify_layer(store._handle, record)
    problems = list(store.check())
    assert [(problem.kind, problem.name) for problem in problems] == [("layer", str(row.diff_id))]


def test_files_of_one_size_and_mark_are_shared_only_when_all_bytes_are_equal(store: Store) -> None:
    head, tail = b"h" * 512, b"t" * 512
    twins = [head + bytes([filling]) * 7168 + tail for filling in (1, 2, 3, 2)]
    one = TestImage([layer({"one": twins[0], "two": twins[1]})], ["one:1"])
    two = TestImage([layer({"three": twins[2], "four": twins[3], "five": twins[0]})], ["two:1"])
    _load(store, one)
    _load(store, two)
    assert store.layers("two:1")[0].shared_size == 2 * len(twins[0])
    assert contents(store, "two:1") == {b"/three": twins[2], b"/four": twins[3], b"/five": twins[0]}
    assert_whole(store)


def test_a_damaged_layer_lends_nothing(store: Store) -> None:
    _load(store, TestImage([layer({"big": BIG})], ["one:1"]))
    path = next(Path(store.info().root).glob("layers/sha256/*/layer.tar"))
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(512 + 150_000)
        file.write(b"damaged")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    _load(store, TestImage([layer({"big": BIG, "other": b""})], ["two:1"]))
    assert store.layers("two:1")[0].shared_size == 0
    assert contents(store, "two:1") == {b"/big": BIG, b"/other": b""}
