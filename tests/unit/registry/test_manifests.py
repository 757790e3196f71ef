"""One image with several manifests: each name and digest keeps its own, and what only that needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.api.copying import copy
from layerfs.errors import Conflict, NotFound
from layerfs.store.snapshot import create_snapshot
from layerfs.values import Image
from tests.faulty_registry import FaultyRegistry
from tests.image_builder import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    TestImage,
    digest,
    docker_old,
    layer,
    noise,
    oci,
    outer,
    pipe,
    write_layout,
)
from tests.store_audit import assert_whole
from tests.unit.registry.faults import QUICK

GZIP = TestImage([layer({"a": noise(20_000)})], codec="gzip")
ZSTD = GZIP.using(codec="zstd")
G, Z = digest(GZIP.manifest), digest(ZSTD.manifest)


@pytest.fixture
def place(registry: FaultyRegistry) -> str:
    """The repository: an image under two tags, with a manifest each, and an index with one of them."""
    registry.add(GZIP, "gzip")
    registry.add(ZSTD, "zstd")
    entry = {"mediaType": MANIFEST_TYPE, "digest": G, "size": len(GZIP.manifest)}
    raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode()
    registry.add_manifest(raw, INDEX_TYPE, "index")
    return f"{registry.address}/team/app"


def _pull(store: Store, name: str, *, keep_blobs: bool = False) -> Image:
    (image,) = store.pull(name, access=QUICK, keep_blobs=keep_blobs)
    return image


def _blobs(store: Store) -> set[str]:
    return {f"sha256:{path.name}" for path in Path(store.info().root, "blobs/sha256").iterdir()}


def test_each_name_keeps_its_manifest(store: Store, place: str) -> None:
    first, second = _pull(store, f"{place}:gzip"), _pull(store, f"{place}:zstd")
    assert first.id == second.id
    for name, manifest in ((f"{place}:gzip", G), (f"{place}:zstd", Z), (f"{place}@{G}", G), (f"{place}@{Z}", Z)):
        assert str(store.resolve(name).manifest_digest) == manifest
        assert digest(store.document(name)) == manifest
        assert digest(store.manifest(store.resolve(name)).raw) == manifest
    (listed,) = store.images()
    assert dict(zip(listed.names, map(str, listed.name_manifests), strict=True)) == {
        f"{place}:gzip": G, f"{place}:zstd": Z,
    }  # fmt: skip
    assert listed.repo_digests == tuple(sorted((f"{place}@{G}", f"{place}@{Z}")))
    store.tag(f"{place}:gzip", "mine:1")
    assert str(store.resolve("mine:1").manifest_digest) == G
    assert_whole(store)


def test_what_goes_out_is_what_the_name_means(store: Store, place: str, tmp_path: Path) -> None:
    for tag in ("gzip", "zstd"):
        _pull(store, f"{place}:{tag}", keep_blobs=True)
    for name, manifest in ((f"{place}:gzip", G), (f"{place}@{Z}", Z)):
        assert str(copy(f"store:{name}", f"oci:{tmp_path}/{manifest[7:]}", store=store)) == manifest


def test_kept_blobs_stay_with_the_name_that_needs_them(store: Store, place: str, tmp_path: Path) -> None:
    _pull(store, f"{place}:gzip", keep_blobs=True)
    _pull(store, f"{place}:zstd")
    store.load(write_layout(tmp_path / "layout", oci(GZIP.using(codec="none", names=["loaded:1"]))))
    store.gc()
    assert digest(GZIP.blobs[0]) in _blobs(store)
    store.remove_image(f"{place}:gzip")
    store.gc()
    assert digest(GZIP.blobs[0]) not in _blobs(store)
    assert_whole(store)


def test_a_digest_is_a_name_that_can_be_removed(store: Store, place: str) -> None:
    _pull(store, f"{place}:gzip")
    _pull(store, f"{place}@{Z}")
    removed = store.remove_image(f"{place}@{Z}")
    assert (removed.untagged, removed.deleted) == ((f"{place}@{Z}",), ())
    with pytest.raises(NotFound):  # once is enough
        store.remove_image(f"{place}@{Z}")
    assert store.resolve(f"{place}:gzip").names == (f"{place}:gzip",)
    assert store.remove_image(f"{place}:gzip").deleted
    assert store.images() == []


def test_an_image_stays_while_a_digest_names_it(store: Store, place: str) -> None:
    for wanted in (G, Z):
        _pull(store, f"{place}@{wanted}")
    assert store.remove_image(f"{place}@{G}").deleted == ()
    store.tag(f"{place}@{Z}", "mine:1")
    assert store.remove_image("mine:1").deleted == ()
    assert str(store.resolve(f"{place}@{Z}").manifest_digest) == Z
    assert store.remove_image(f"{place}@{Z}").deleted


def test_what_is_known_from_a_tag_alone_goes_with_it(store: Store, place: str) -> None:
    for tag in ("gzip", "zstd"):
        _pull(store, f"{place}:{tag}")
    store.tag(f"{place}:gzip", "mine:1")
    assert store.remove_image(f"{place}:gzip").deleted == ()
    assert store.images()[0].origins == (f"{place}@{Z}",)
    assert store.remove_image(f"{place}:zstd").deleted == ()
    assert store.images()[0].origins == ()
    for digest_of in (Z, G):
        with pytest.raises(NotFound):
            store.remove_image(f"{place}@{digest_of}")
    assert store.resolve("mine:1").names == ("docker.io/library/mine:1",)
    assert store.remove_image("mine:1").deleted


@pytest.mark.parametrize("by_digest", [False, True])
def test_an_image_that_was_given_another_name_goes_with_that(store: Store, place: str, by_digest: bool) -> None:
    source = f"{place}@{G}" if by_digest else f"{place}:gzip"
    store.pull(source, name="mine:1", access=QUICK)
    assert store.remove_image("mine:1").deleted
    assert store.images() == []


def test_a_digest_of_another_repository_removes_nothing(store: Store, place: str) -> None:
    _pull(store, f"{place}:index")
    index = store.images()[0].origins[0].partition("@")[2]
    store.tag(f"{place}:index", "mine:1")
    with pytest.raises(NotFound):
        store.remove_image(f"elsewhere@{G}", force=True)
    with pytest.raises(Conflict, match=f"{place}:index"):  # that is what the tag means
        store.remove_image(f"{place}@{G}", force=True)
    assert len(store.images()[0].names) == 2
    assert store.remove_image(f"{place}@{index}").deleted == ()


def test_the_end_of_two_names_removes_nothing(store: Store, place: str) -> None:
    _pull(store, f"{place}:gzip")
    for name in ("r.example/x/app:gzip", "r.example/other:1"):
        store.tag(f"{place}:gzip", name)
    with pytest.raises(Conflict, match="may mean"):
        store.remove_image("app:gzip", force=True)
    assert len(store.images()[0].names) == 3


def test_names_that_look_like_the_beginning_of_an_id(store: Store, place: str) -> None:
    _pull(store, f"{place}:gzip")
    store.tag(f"{place}:gzip", "r.example/x/db")
    assert store.resolve("db").manifest_digest == store.resolve(f"{place}:gzip").manifest_digest
    beginning = store.images()[0].id.hex[:6]
    store.tag(f"{place}:gzip", f"r.example/x/{beginning}")
    with pytest.raises(Conflict, match="3 names"):  # it means the ID
        store.remove_image(beginning)


def test_a_container_keeps_the_manifest_that_it_was_made_by(store: Store, place: str) -> None:
    _pull(store, f"{place}:gzip", keep_blobs=True)
    create_snapshot(store._handle, store._record(f"{place}:gzip"), "box")
    _pull(store, f"{place}:zstd")
    store.remove_image(f"{place}:gzip")
    store.gc()
    image = store.commit("box", "new:1")
    assert [layer.media_type.rpartition(".")[2] for layer in store.manifest(image).layers][:1] == ["tar+gzip"]
    assert digest(GZIP.blobs[0]) in _blobs(store)
    assert_whole(store)


def test_an_archive_without_a_manifest_leaves_the_name_its_own(store: Store, place: str) -> None:
    for tag in ("gzip", "zstd"):
        _pull(store, f"{place}:{tag}")
    store.load(pipe(outer(docker_old(GZIP.using(codec="none", names=[f"{place}:gzip"])))))
    assert str(store.resolve(f"{place}:gzip").manifest_digest) == G


def test_what_goes_out_has_the_names_that_mean_it(store: Store, place: str, tmp_path: Path) -> None:
    for tag in ("gzip", "zstd"):
        _pull(store, f"{place}:{tag}", keep_blobs=True)
    _pull(store, f"{place}:index")
    copy(f"store:{place}:zstd", f"oci:{tmp_path}/copy", store=store)
    assert _listed(tmp_path / "copy") == {f"{place}:zstd": Z}
    # An image as such goes out with all its names, each with its manifest.
    store.save([store.resolve(f"{place}:zstd")], tmp_path / "saved", form="oci")
    assert _listed(tmp_path / "saved") == {f"{place}:gzip": G, f"{place}:index": G, f"{place}:zstd": Z}
    store.save([store.images()[0]], tmp_path / "docker.tar", form="docker-archive")
    store.remove_image(store.images()[0], force=True)
    image = store.load(tmp_path / "docker.tar")[-1]
    assert image.names == (f"{place}:gzip", f"{place}:index", f"{place}:zstd")


def _listed(layout: Path) -> dict[str, str]:
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    return {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}


def test_an_index_is_kept_as_it_came(
    store: Store, registry: FaultyRegistry, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, _ = registry.manifests["index"]
    _pull(store, f"{place}:index")
    name = f"{place}@{digest(raw)}"
    assert store.document(name) == raw
    assert digest(store.document(f"{place}:index")) == G
    store.save(name, tmp_path / "saved", form="oci")
    assert f"the manifest {G}" in caplog.text
    store.gc()
    assert store.document(name) == raw
    assert store.remove_image(name).deleted == ()
    store.gc()
    assert digest(raw) not in _blobs(store)
