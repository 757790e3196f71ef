"""Compressed blobs are kept when that is asked for, as they came, and go with their image."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import IntegrityError
from tests.faulty_registry import FaultyRegistry
from tests.image_builder import TestImage, blob_path, digest, docker_old, layer, noise, oci, outer, pipe, write_layout
from tests.store_audit import assert_whole
from tests.unit.registry.faults import BIG, QUICK

BASE = layer({"a": noise(50_000, "a")})
IMAGE = TestImage([BASE, layer({"b": noise(9000, "b")})], ["one:1"])
OTHER = TestImage([BASE, layer({"c": b"c"})], ["two:1"])


def _kept(store: Store) -> set[str]:
    root = Path(store.info().root)
    documents = {str(digest) for image in store.images() for digest in (image.id, image.manifest_digest)}
    return {f"sha256:{path.name}" for path in (root / "blobs/sha256").iterdir()} - documents


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("form", ["layout", "archive", "pipe"])
def test_blobs_are_kept_as_they_came(store: Store, tmp_path: Path, codec: str, form: str) -> None:
    image = IMAGE.using(codec=codec)
    members = oci(image)
    if form == "layout":
        store.load(write_layout(tmp_path / "layout", members), keep_blobs=True)
    elif form == "archive":
        (tmp_path / "archive").write_bytes(outer(members))
        store.load(tmp_path / "archive", keep_blobs=True)
    else:
        store.load(pipe(outer(members)), keep_blobs=True)
    root = Path(store.info().root)
    assert _kept(store) == {digest(blob) for blob in image.blobs}
    for blob in image.blobs:
        assert (root / blob_path(digest(blob))).read_bytes() == blob
    assert_whole(store)
    store.remove_image("one:1")
    assert not list((root / "blobs").glob("*/*"))


@pytest.mark.parametrize("piped", [False, True])
def test_blobs_of_layers_that_are_there_are_read_when_they_are_to_be_kept(
    store: Store, tmp_path: Path, piped: bool
) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(outer(oci(IMAGE)))
    store.load(archive)
    assert _kept(store) == set()
    store.load(pipe(archive.read_bytes()) if piped else archive, keep_blobs=True)
    assert _kept(store) == {digest(blob) for blob in IMAGE.blobs}
    store.load(archive)
    assert _kept(store) == {digest(blob) for blob in IMAGE.blobs}, "a load without the wish takes nothing away"


def test_a_shared_blob_stays_with_the_other_image(store: Store) -> None:
    for image in (IMAGE, OTHER):
        store.load(pipe(outer(oci(image))), keep_blobs=True)
    store.remove_image("one:1")
    assert _kept(store) == {digest(blob) for blob in OTHER.blobs}


def test_uncompressed_blobs_are_not_kept_twice(store: Store) -> None:
    store.load(pipe(outer(oci(IMAGE.using(codec="none")))), keep_blobs=True)
    store.load(pipe(outer(docker_old(OTHER.using(codec="none")))), keep_blobs=True)
    assert _kept(store) == set()


def test_a_load_that_fails_keeps_nothing(store: Store) -> None:
    members = oci(IMAGE)
    path = blob_path(digest(IMAGE.blobs[1]))
    members[path] = OTHER.blobs[1]
    with pytest.raises(IntegrityError):
        store.load(pipe(outer(members)), keep_blobs=True)
    root = Path(store.info().root)
    assert not list((root / "blobs").glob("*/*"))
    assert not list((root / "ingest").iterdir())


def test_check_finds_and_drops_a_damaged_blob(store: Store) -> None:
    store.load(pipe(outer(oci(IMAGE))), keep_blobs=True)
    victim = digest(IMAGE.blobs[0])
    path = Path(store.info().root) / blob_path(victim)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (problem,) = store.check()
    assert (problem.kind, problem.name, problem.repaired) == ("blob", victim, False)
    (problem,) = store.check(repair=True)
    assert problem.repaired
    assert_whole(store)
    assert _kept(store) == {digest(IMAGE.blobs[1])}


def test_a_blob_that_had_to_be_fetched_again_is_kept(store: Store, registry: FaultyRegistry) -> None:
    part = Path(store.info().root, "partial", BIG.replace(":", "-"))
    part.write_bytes(bytes(1000))  # what an interrupted pull left, and is wrong
    store.pull(f"{registry.address}/team/app", access=QUICK, keep_blobs=True)
    assert BIG in _kept(store)
    assert_whole(store)
