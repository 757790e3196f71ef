"""Every size and digest of every form is verified, and what does not match leaves the store as it was."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from layerfs.api import Store
from layerfs.errors import DigestMismatch, FormatError, IntegrityError, LayerfsError, NotFound
from tests.image_builder import (
    Members,
    TestImage,
    blob_path,
    compress,
    digest,
    docker_new,
    docker_old,
    document,
    layer,
    noise,
    oci,
    outer,
    pipe,
    write_layout,
)
from tests.store_audit import assert_clean, assert_whole, contents, tree_files

KEPT = TestImage([layer({"kept": noise(9000, "kept")})], ["kept:1"])
IMAGE = TestImage([layer({"a": noise(9000, "a")}), layer({"b": noise(9000, "b")})], ["bad:1"])
SOURCES = ["directory", "file", "pipe", "gzip pipe"]


def _sources(folder: Path, members: Members, kind: str) -> BinaryIO | Path:
    if kind == "directory":
        return write_layout(folder / "layout", members)
    if kind == "pipe":
        return pipe(outer(members))
    if kind == "gzip pipe":
        return pipe(outer(members, lambda names: names[::-1], "gzip"))
    (folder / "archive").write_bytes(outer(members))
    return folder / "archive"


def _rewritten(image: TestImage, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Members:
    """Return a layout whose manifest and config say something else, their own digests being right."""
    members = oci(image)
    manifest, config = json.loads(image.manifest), json.loads(image.config)
    change(manifest, config)
    raw = json.dumps(config).encode()
    if raw != image.config:
        manifest["config"] |= {"digest": digest(raw), "size": len(raw)}
        members[blob_path(digest(raw))] = raw
    top = json.dumps(manifest).encode()
    members[blob_path(digest(top))] = top
    index = json.loads(document(members, "index.json"))
    index["manifests"][0] |= {"digest": digest(top), "size": len(top)}
    members["index.json"] = json.dumps(index).encode()
    return members


def _wrong_layer_size(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    manifest["layers"][1]["size"] += 1


def _wrong_layer_digest(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    # The first blob stands under the second's name as well: all sizes fit.
    manifest["layers"][1]["digest"] = digest(b"other")


def _wrong_diff_id(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    config["rootfs"]["diff_ids"][1] = digest(b"other")


def _swapped_diff_ids(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    config["rootfs"]["diff_ids"].reverse()


def _too_few_diff_ids(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    config["rootfs"]["diff_ids"].pop()


def _wrong_config_size(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    manifest["config"]["size"] += 1


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    "change",
    [
        _wrong_layer_size,
        _wrong_layer_digest,
        _wrong_diff_id,
        _swapped_diff_ids,
        _too_few_diff_ids,
        _wrong_config_size,
    ],
)
def test_documents_that_contradict_their_layers(
    store: Store, tmp_path: Path, kind: str, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    store.load(pipe(outer(oci(KEPT))))
    before = tree_files(tmp_path / "store")
    members = _rewritten(IMAGE, change)
    if change is _wrong_layer_digest:
        members[blob_path(digest(b"other"))] = IMAGE.blobs[1]
    with pytest.raises((IntegrityError, FormatError)):
        store.load(_sources(tmp_path, members, kind))
    assert [image.names for image in store.images()] == [("docker.io/library/kept:1",)]
    assert tree_files(tmp_path / "store") == before
    assert_clean(store)
    store.load(_sources(tmp_path / "store", oci(IMAGE), "pipe"))
    assert_whole(store)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("make", [docker_old, docker_new, oci])
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "swap", "missing"])
def test_layers_that_are_not_what_was_promised(
    store: Store, tmp_path: Path, kind: str, make: Callable[[TestImage], Members], codec: str, damage: str
) -> None:
    image = IMAGE.using(codec=codec)
    members = make(image)
    # By name: the layer's bytes are those of its blob in every form.
    place = next(name for name, content in members.items() if content == image.blobs[1])
    other = next(name for name, content in members.items() if content == image.blobs[0])
    blob = bytearray(image.blobs[1])
    if damage == "flip":
        blob[len(blob) // 2] ^= 0x40
    elif damage == "cut":
        del blob[-2000:]
    elif damage == "longer":
        blob += bytes(512)
    if damage == "swap":
        members[place], members[other] = members[other], members[place]
    elif damage == "missing":
        del members[place]
    else:
        members[place] = bytes(blob)
    if make is docker_old and codec == "gzip" and damage == "longer":
        # Zeros behind a gzip stream are padding, and nothing in this form tells the blob's digest.
        store.load(_sources(tmp_path, members, kind))
        return
    with pytest.raises((IntegrityError, FormatError, NotFound)) as caught:
        store.load(_sources(tmp_path, members, kind))
    assert "\n" not in str(caught.value)
    assert not store.images()
    assert_clean(store)


@pytest.mark.parametrize("kind", SOURCES)
def test_documents_that_are_not_what_was_promised(store: Store, tmp_path: Path, kind: str) -> None:
    for number, make in enumerate([docker_old, docker_new, oci]):
        for name, content in make(IMAGE).items():
            if content not in (IMAGE.config, IMAGE.manifest):
                continue
            assert isinstance(content, bytes)
            for damaged in (content.replace(b"linux", b"linuy"), content[:-1], content + b" ", None):
                members = make(IMAGE)
                if damaged == content:
                    continue
                if damaged is None:
                    del members[name]
                else:
                    members[name] = damaged
                folder = tmp_path / f"{number}{len(list(tmp_path.iterdir()))}"
                folder.mkdir()
                with pytest.raises((IntegrityError, FormatError, NotFound)):
                    store.load(_sources(folder, members, kind))
    assert not store.images()
    assert_clean(store)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("make", [docker_old, docker_new, oci])
def test_sha512_everywhere(store: Store, tmp_path: Path, kind: str, make: Callable[[TestImage], Members]) -> None:
    shared = noise(70_000, "512")
    image = TestImage([layer({"a": shared, "s": b"s"}), layer({"b": shared, "c": noise(5000)})], ["t:1"])
    image = image.using(algorithm="sha512")
    (loaded,) = store.load(_sources(tmp_path, make(image), kind))
    assert str(loaded.id) == image.id
    assert [str(row.diff_id) for row in store.layers(loaded)] == image.diff_ids
    assert contents(store, loaded) == {b"/a": shared, b"/s": b"s", b"/b": shared, b"/c": noise(5000)}
    assert store.usage().saved_by_files == len(shared)
    assert_whole(store)
    # The same bytes whichever way they came: what a pipe stores first under another name leaves no trace.
    with Store.open(tmp_path / "direct", sync=False) as direct:
        (tmp_path / "plain").mkdir()
        direct.load(_sources(tmp_path / "plain", make(image), "directory"))
    assert tree_files(tmp_path / "direct") == tree_files(tmp_path / "store")


@pytest.mark.parametrize("kind", SOURCES)
def test_sha512_of_diff_ids_under_sha256_blobs(store: Store, tmp_path: Path, kind: str) -> None:
    tars = [layer({"a": noise(70_000)})]

    def change(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        config["rootfs"]["diff_ids"] = [digest(tars[0], "sha512")]

    for codec in ("none", "gzip"):
        image = TestImage(tars, ["t:1"], codec=codec)
        folder = tmp_path / codec
        folder.mkdir()
        (loaded,) = store.load(_sources(folder, _rewritten(image, change), kind))
        assert contents(store, loaded) == {b"/a": noise(70_000)}
        assert_whole(store)

    def lie(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        config["rootfs"]["diff_ids"] = [digest(b"lie", "sha512")]

    (tmp_path / "lie").mkdir()
    with pytest.raises(IntegrityError):
        store.load(_sources(tmp_path / "lie", _rewritten(TestImage(tars), lie), kind))
    assert_whole(store)


@pytest.mark.parametrize("kind", SOURCES)
def test_one_bad_image_among_good_ones_keeps_all_out(store: Store, tmp_path: Path, kind: str) -> None:
    """And the names stay with the images that had them."""
    old = TestImage([layer({"old": b"old"})], ["good:1"])
    store.load(pipe(outer(oci(old))))
    good = TestImage([layer({"good": noise(9000, "good")})], ["good:1"], codec="none")
    nowhere = layer({"x": b""}, end=False) + layer([])
    bad = TestImage([nowhere, _dangling_link()], ["bad:1"], codec="none")
    with pytest.raises(LayerfsError, match="is not there"):
        store.load(_sources(tmp_path, docker_old(good, bad), kind))
    (left,) = store.images()
    assert str(left.id) == old.id
    assert left.names == ("docker.io/library/good:1",)
    assert_whole(store)


def _dangling_link() -> bytes:
    from tests.image_builder import entry

    return layer([entry("link", kind=b"1", link="missing")])


def test_an_archive_that_is_cut_anywhere(store: Store, tmp_path: Path) -> None:
    store.load(pipe(outer(oci(KEPT))))
    before = tree_files(tmp_path / "store")
    for make in (docker_old, oci):
        for codec in ("none", "gzip", "zstd"):
            archive = outer(make(IMAGE), codec=codec)
            # The end marker alone may be missing, as every reader of tars allows.
            needed = len(archive) - (1024 if codec == "none" else 1)
            for number in range(16):
                cut = archive[: needed * number // 16 + number % 3]
                path = tmp_path / "cut"
                path.write_bytes(cut)
                for source in (path, pipe(cut)):
                    with pytest.raises((FormatError, NotFound, IntegrityError)):
                        store.load(source)
    assert tree_files(tmp_path / "store") == before
    assert_whole(store)


def test_a_check_that_raises_ends_a_load_at_any_point(store: Store, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    store.load(pipe(outer(oci(KEPT))))
    before = tree_files(tmp_path / "store")
    image = TestImage([layer({f"f{n}": noise(700_000, n)}) for n in range(4)], ["t:1"])
    archive = outer(docker_old(image))
    layout = write_layout(tmp_path / "layout", oci(image))
    for at in range(60):
        left = at

        def check() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop

        source: BinaryIO | Path = layout if at % 2 else pipe(archive, 1 << 20)
        try:
            store.load(source, check=check)
        except Stop:
            assert tree_files(tmp_path / "store") == before
            assert len(store.images()) == 1
            assert_clean(store)
        else:
            assert at > 8
            break
    else:
        pytest.fail("check is polled more often than this test thinks")
    assert_whole(store)


def test_loading_again_does_not_read_the_layers(store: Store, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", oci(IMAGE))
    store.load(layout)
    for blob in IMAGE.blobs:
        (layout / blob_path(digest(blob))).write_bytes(bytes(len(blob)))
    store.load(layout)
    assert_whole(store)


@pytest.mark.parametrize("archive", [False, True])
def test_layers_that_are_there_are_held_against_their_descriptors(store: Store, tmp_path: Path, archive: bool) -> None:
    """The manifest of the second image may not promise what its archive does not hold."""
    store.load(io.BytesIO(outer(oci(IMAGE))))
    listed = [(image.id, image.manifest_digest) for image in store.images()]
    members = oci(replace(IMAGE, codec="zstd"))  # blobs that the store has never seen
    last = blob_path(digest(replace(IMAGE, codec="zstd").blobs[-1]))
    blob = members[last]
    assert isinstance(blob, bytes)

    def load(changed: Members) -> None:
        if archive:
            (tmp_path / "image.tar").write_bytes(outer(changed))
            store.load(tmp_path / "image.tar")
        else:
            shutil.rmtree(tmp_path / "layout", ignore_errors=True)
            store.load(write_layout(tmp_path / "layout", changed))

    with pytest.raises(NotFound):
        load({name: data for name, data in members.items() if name != last})
    with pytest.raises(IntegrityError, match="bytes, expected"):
        load({**members, last: blob + b"x"})
    with pytest.raises((DigestMismatch, FormatError)):
        load({**members, last: bytes(len(blob))})
    assert [(image.id, image.manifest_digest) for image in store.images()] == listed
    load(members)
    assert store.images()[0].manifest_digest != listed[0][1]
    assert_whole(store)


def test_progress_tells_of_every_layer(store: Store) -> None:
    seen: list[tuple[str, str, int, int | None]] = []

    class Told:
        def update(self, key: str, state: str, done: int, total: int | None) -> None:
            seen.append((key, state, done, total))

    store.load(pipe(outer(oci(IMAGE))), progress=Told())
    assert {state for _, state, _, _ in seen} == {"Loading", "Load complete"}
    assert len({key for key, _, _, _ in seen}) == 2
    assert all(total is not None and done <= total for _, _, done, total in seen)
    seen.clear()
    store.load(pipe(outer(oci(IMAGE))), progress=Told())
    assert {state for _, state, _, _ in seen} == {"Already exists"}


def test_compression_inside_is_found_by_bytes_not_by_name(store: Store) -> None:
    """A docker archive may hold compressed layers under the name layer.tar, and a wrong media type changes nothing."""
    tar = layer({"a": noise(5000)})
    members = docker_old(TestImage([tar], ["t:1"], codec="none"))
    place = next(name for name, content in members.items() if content == tar)
    for codec in ("gzip", "zstd"):
        members[place] = compress(tar, codec)
        (loaded,) = store.load(pipe(outer(members)))
        assert contents(store, loaded) == {b"/a": noise(5000)}
        store.remove_image("t:1")


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_a_blob_that_is_not_what_was_promised_is_that_first_of_all(
    store: Store, tmp_path: Path, kind: str, damage: str
) -> None:
    members = oci(IMAGE)
    name = blob_path(digest(IMAGE.blobs[1]))
    blob = members[name]
    assert isinstance(blob, bytes)
    members[name] = noise(len(blob), "garbage") if damage == "garbage" else blob[:-20]
    with pytest.raises(IntegrityError):
        store.load(_sources(tmp_path, members, kind))
    assert_clean(store)


@pytest.mark.parametrize("kind", SOURCES)
def test_an_error_inside_a_layer_names_it(store: Store, tmp_path: Path, kind: str) -> None:
    image = TestImage([layer({"good": b""}), layer({"../out": b"x"})], ["bad:1"])
    with pytest.raises(FormatError, match=r"^layer \S+: path '\.\./out' contains '\.\.'$"):
        store.load(_sources(tmp_path, oci(image), kind))
    assert_clean(store)


def test_names_with_a_digest_in_an_archive_are_not_given(store: Store, tmp_path: Path) -> None:
    image = TestImage([layer({"a": b""})], ["kept:1"])
    members = docker_old(image)
    manifest = json.loads(document(members, "manifest.json"))
    manifest[0]["RepoTags"].append("other@sha256:" + "0" * 64)
    members["manifest.json"] = json.dumps(manifest).encode()
    (loaded,) = store.load(_sources(tmp_path, members, "file"))
    assert loaded.names == ("docker.io/library/kept:1",)
    manifest[0]["RepoTags"] = ["NO NAME"]
    members["manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(FormatError, match="RepoTags"):
        store.load(_sources(tmp_path, members, "file"))
