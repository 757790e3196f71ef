"""Copies whose layers are compressed in another way: the same image, which other tools read."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from bench.registry import Registry
from layerfs.api import Store
from layerfs.api.copying import copy
from layerfs.errors import DigestMismatch, FormatError, InvalidReference, LayerfsError, NotFound
from layerfs.formats.media_type import Compression
from layerfs.formats.reference import Reference
from layerfs.linux import scratch
from layerfs.registry.remote import Registries
from layerfs.store.layer_writer import LayerWriter
from tests.cli.conftest import Shell
from tests.image_builder import (
    Members,
    TestImage,
    blob_path,
    digest,
    docker_new,
    document,
    layer,
    oci,
    outer,
    write_layout,
)
from tests.integration.registry.conftest import IMAGE, PLAIN, put, skopeo
from tests.integration.registry.test_real_registry import skopeo_manifest
from tests.store_audit import assert_whole

OCI_LAYERS = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


def plain(blob: bytes) -> tuple[str, bytes]:
    """Return how a blob is compressed, and what it is uncompressed."""
    if blob.startswith(b"\x1f\x8b"):
        return "gzip", gzip.decompress(blob)
    if blob.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd", zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    return "none", blob


def blobs_of(layout: Path, manifest: dict[str, Any]) -> list[bytes]:
    """Return the layers of a manifest, each verified."""
    found = []
    for entry in manifest["layers"]:
        blob = (layout / "blobs" / entry["digest"].replace(":", "/")).read_bytes()
        assert digest(blob) == entry["digest"]
        assert len(blob) == entry["size"]
        found.append(blob)
    return found


def inspected(layout: Path, name: str = "x") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(skopeo("inspect", "--raw", f"oci:{layout}:{name}"))
    return found


def assert_compressed(layout: Path, compression: str, image: TestImage = IMAGE) -> None:
    """Assert that the image ``x`` of a layout has its layers, compressed like this."""
    manifest = inspected(layout)
    assert {entry["mediaType"] for entry in manifest["layers"]} == {OCI_LAYERS[compression]}
    assert [plain(blob) for blob in blobs_of(layout, manifest)] == [(compression, tar) for tar in image.layers]
    assert manifest["config"]["digest"] == image.id


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_every_way_in_and_out(
    registry: Registry, layout: Path, tmp_path: Path, store: Store, compression: Compression
) -> None:
    (archive := tmp_path / "archive.tar").write_bytes(outer(docker_new(IMAGE)))
    (image,) = store.load(layout)
    (tmp_path / "out").mkdir()
    for number, source in enumerate((f"oci:{layout}:app", f"docker-archive:{archive}", f"store:{image.id}")):
        out = tmp_path / "out" / f"deep/{number}"
        level = None if compression == "none" else 1 + number
        for place in (f"oci:{out}/layout:x", f"dir:{out}/dir", f"oci-archive:{out}/archive.tar:x",
                      f"docker://{registry.name(f'app:{number}')}"):  # fmt: skip
            if place.startswith("oci-archive"):
                out.mkdir(parents=True, exist_ok=True)
            copy(source, place, compression=compression, level=level, store=store, access=PLAIN)
            copy(place, f"oci:{tmp_path}/back{number}{place[:3]}:x", access=PLAIN)
            assert_compressed(tmp_path / f"back{number}{place[:3]}", compression)
        assert sorted(path.name for path in out.iterdir()) == ["archive.tar", "dir", "layout"], "nothing is left beside"
    (image,) = store.pull(registry.name("app:0"), access=PLAIN)
    assert str(image.id) == IMAGE.id
    assert_whole(store)


def test_what_is_compressed_like_this_already_stays(registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("app:1"))
    source = f"docker://{registry.name('app:1')}"
    came = hashlib.sha256(skopeo_manifest(registry.name("app:1"))).hexdigest()
    assert copy(source, f"oci:{tmp_path}/same:x", compression="gzip", access=PLAIN).hex == came
    anew = copy(source, f"oci:{tmp_path}/level:x", compression="gzip", level=9, access=PLAIN)
    assert anew.hex != came, "who asks for a level wants these bytes"
    assert_compressed(tmp_path / "level", "gzip")


def test_docker_manifests_stay_docker_but_for_zstd(registry: Registry, layout: Path, tmp_path: Path) -> None:
    put(layout, registry.name("app:docker"), "--format", "v2s2")
    source = f"docker://{registry.name('app:docker')}"
    for compression, kind, layers in (
        (
            "none",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.image.rootfs.diff.tar",
        ),
        ("zstd", "application/vnd.oci.image.manifest.v1+json", OCI_LAYERS["zstd"]),
    ):
        name = registry.name(f"app:{compression}")
        copy(source, f"docker://{name}", compression=compression, access=PLAIN)  # type: ignore[arg-type]
        manifest = json.loads(skopeo_manifest(name))
        assert manifest["mediaType"] == kind
        assert {entry["mediaType"] for entry in manifest["layers"]} == {layers}
        skopeo("copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path}/{compression}")


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_an_index_lists_what_its_images_have_become(
    registry: Registry, tmp_path: Path, compression: Compression, *, docker: bool
) -> None:
    entries, images = [], []
    for architecture in ("amd64", "arm64"):
        image = TestImage([layer({"for": architecture.encode() * 999})], ["app"], architecture=architecture)
        images.append(image)
        name = registry.name(f"list:{architecture}")
        put(write_layout(tmp_path / architecture, oci(image)), name, "--format", "v2s2" if docker else "oci")
        raw = skopeo_manifest(name)
        entries.append({
            "mediaType": json.loads(raw)["mediaType"], "size": len(raw),
            "digest": digest(raw),
            "platform": {"os": "linux", "architecture": architecture},
        })  # fmt: skip
    kind = f"application/vnd.{'docker.distribution.manifest.list.v2' if docker else 'oci.image.index.v1'}+json"
    listed = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    with Registries.open(PLAIN) as registries:
        registries.write_to(Reference.parse(registry.name("list:all"))).put_manifest("all", listed, kind)
    source, name = f"docker://{registry.name('list:all')}", registry.name("list:anew")
    copy(source, f"docker://{name}", everything=True, compression=compression, access=PLAIN)
    index = json.loads(skopeo_manifest(name))
    assert index["mediaType"] == (kind if compression == "none" else "application/vnd.oci.image.index.v1+json")
    assert not {entry["digest"] for entry in index["manifests"]} & {str(entry["digest"]) for entry in entries}
    assert [entry["platform"] for entry in index["manifests"]] == [entry["platform"] for entry in entries]
    for entry, image in zip(index["manifests"], images, strict=True):
        copy(
            f"docker://{registry.name('list')}@{entry['digest']}",
            f"oci:{tmp_path}/{image.architecture}-x:x",
            access=PLAIN,
        )
        assert_compressed(tmp_path / f"{image.architecture}-x", compression, image)
    skopeo("copy", "--quiet", "--all", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path}/theirs")


def damaged(members: Members) -> Members:
    """Return a layout one of whose layers has another byte in the midst of its compressed data."""
    found = dict(members)
    name = max(blob_path(digest(blob)) for blob in IMAGE.blobs)
    data = bytearray(document(found, name))
    data[len(data) // 2] ^= 1
    found[name] = bytes(data)
    return found


def test_damage_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "damaged", damaged(oci(IMAGE)))
    (tmp_path / "out").mkdir()
    for place in (f"oci:{tmp_path}/out/layout:x", f"dir:{tmp_path}/out/dir", f"oci-archive:{tmp_path}/out/archive.tar"):
        with pytest.raises(DigestMismatch, match="blob"):
            copy(f"oci:{source}:app", place, compression="zstd", access=PLAIN)
        assert not list((tmp_path / "out").iterdir())


def test_what_is_refused(store: Store, layout: Path, tmp_path: Path, shell: Shell) -> None:
    store.load(layout)
    source = f"oci:{layout}:app"
    for place in (f"docker-archive:{tmp_path}/x.tar", "store:other"):
        with pytest.raises(InvalidReference, match="are not compressed"):
            copy(source, place, compression="gzip", store=store)
        copy(source, place, compression="none", store=store)
    with pytest.raises(InvalidReference, match="level 3 of no compression"):
        copy(source, f"oci:{tmp_path}/x", level=3)
    with pytest.raises(InvalidReference, match="gzip has 1 to 9, not 10"):
        copy(source, f"oci:{tmp_path}/x", compression="gzip", level=10)
    with pytest.raises(InvalidReference, match="level 3 of no compression"):
        store.save(IMAGE.id, tmp_path / "x", form="oci", level=3)
    assert "gzip has 1 to 9" in shell.fails(
        2, "copy", source, f"oci:{tmp_path}/x", "--compression", "gzip", "--compression-level", "0"
    )
    assert not (tmp_path / "x").exists()


def test_a_media_type_that_lies_is_put_right(layout: Path, tmp_path: Path) -> None:
    """A plain tar that is announced as gzip."""
    members = dict(oci(IMAGE))
    manifest = json.loads(IMAGE.manifest)
    manifest["layers"][0] |= {"digest": digest(IMAGE.layers[0]), "size": len(IMAGE.layers[0])}
    encoded = json.dumps(manifest).encode()
    members |= {blob_path(digest(encoded)): encoded, blob_path(digest(IMAGE.layers[0])): IMAGE.layers[0]}
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [
        {"mediaType": manifest["mediaType"], "digest": digest(encoded), "size": len(encoded)},
    ]}).encode()  # fmt: skip
    copy(f"oci:{write_layout(tmp_path / 'in', members)}", f"oci:{tmp_path}/out:x", compression="none")
    assert_compressed(tmp_path / "out", "none")


def test_progress_comes_to_an_end(layout: Path, tmp_path: Path) -> None:
    told: dict[str, str] = {}

    class Told:
        def update(self, key: str, state: str, _done: int, _total: int | None) -> None:
            told[key] = state

    copy(f"oci:{layout}:app", f"oci:{tmp_path}/x", compression="zstd", progress=Told())
    assert set(told.values()) == {"Compressed", "Copy complete"}


def test_what_is_no_layer_stays(tmp_path: Path) -> None:
    """An attestation is listed beside the image, and speaks of its manifest."""
    statement = b'{"predicate": "any"}'
    config = b'{"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}'

    def descriptor(kind: str, raw: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest(raw), "size": len(raw)}

    members = dict(oci(IMAGE))
    image = json.loads(document(members, "index.json"))["manifests"][0]
    attestation = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "subject": {key: image[key] for key in ("mediaType", "digest", "size")},
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor("application/vnd.in-toto+json", statement)],
    }).encode()  # fmt: skip
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [
        {**image, "annotations": {}},
        {**descriptor("application/vnd.oci.image.manifest.v1+json", attestation),
         "platform": {"os": "unknown", "architecture": "unknown"},
         "annotations": {"vnd.docker.reference.type": "attestation-manifest",
                         "vnd.docker.reference.digest": image["digest"]}},
    ]}).encode()  # fmt: skip
    for raw in (statement, config, attestation, index):
        members[blob_path(digest(raw))] = raw
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [descriptor(kind, index)]}).encode()
    source = write_layout(tmp_path / "attested", members)
    copy(f"oci:{source}", f"oci:{tmp_path}/out:x", everything=True, compression="zstd")
    first, second = inspected(tmp_path / "out")["manifests"]
    about = json.loads(skopeo("inspect", "--raw", f"oci:{tmp_path}/out:x"))["manifests"][1]["digest"]
    found = json.loads((tmp_path / "out" / blob_path(about)).read_text())
    assert found["subject"]["digest"] == first["digest"]
    assert found["subject"]["size"] == first["size"]
    assert found["layers"] == json.loads(attestation)["layers"]
    assert second["annotations"]["vnd.docker.reference.digest"] == first["digest"] != image["digest"]


def test_a_temporary_directory_that_is_not_there(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(LayerfsError, match=r"cannot write .*missing"):
        copy(f"oci:{layout}:app", "docker://127.0.0.1:1/x:y", compression="zstd", access=PLAIN)


def test_what_a_killed_copy_has_left_goes(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    (out / ".layerfs-copy-deaddead/store").mkdir(parents=True)
    (out / ".layerfs-copy-deaddead/.made-by-layerfs-copy").touch()
    monkeypatch.setattr(scratch, "_FRESH", -1)
    copy(f"oci:{layout}:app", f"docker-archive:{out}/one.tar")
    assert [path.name for path in out.iterdir()] == ["one.tar"]


def test_beside_a_volume_nothing_can_be_written(
    layout: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = store.load(layout)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path) and access(path, mode))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    used: list[str] = []
    make = tempfile.mkdtemp

    def made(**options: str) -> str:
        used.append(options["dir"])
        return make(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    copy(f"oci:{layout}:app", f"oci:{tmp_path}/volume:x", compression="zstd")
    copy(f"store:{image.id}", f"dir:{tmp_path}/other", store=store)
    assert_compressed(tmp_path / "volume", "zstd")
    assert used == [str(tmp_path / "temporary")] * 2
    assert not list((tmp_path / "temporary").iterdir())


def test_a_disk_that_is_full_is_that_of_the_destination(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LayerWriter, "write", full)
    with pytest.raises(
        LayerfsError, match=r"^cannot write docker-archive:.*one.tar: No space left on device$"
    ) as caught:
        copy(f"oci:{layout}:app", f"docker-archive:{tmp_path}/one.tar")
    assert caught.value.hint is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["oci:{0}/x", "dir:{0}/x", "docker-archive:{0}/x.tar"])
def test_an_image_for_another_platform_is_not_copied_for_this_one(layout: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(NotFound, match="linux/arm64"):
        copy(f"oci:{layout}:app", place.format(tmp_path), platform="linux/arm64")
    copy(f"oci:{layout}:app", place.format(tmp_path), platform="linux/amd64")


def test_a_name_that_a_layout_does_not_have(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nope") as caught:
        copy(f"oci:{layout}:nope", f"oci:{tmp_path}/x")
    assert caught.value.hint == "There is: app."


def test_what_layers_are_not_compressed_with(tmp_path: Path) -> None:
    members = dict(oci(IMAGE))
    raw = bz2.compress(IMAGE.layers[0])
    manifest = json.loads(IMAGE.manifest)
    manifest["layers"][0] |= {"digest": digest(raw), "size": len(raw)}
    encoded = json.dumps(manifest).encode()
    name = digest(encoded)
    members |= {blob_path(name): encoded, blob_path(manifest["layers"][0]["digest"]): raw}
    members["index.json"] = json.dumps({
        "schemaVersion": 2,
        "manifests": [{"mediaType": manifest["mediaType"], "digest": name, "size": len(encoded)}],
    }).encode()  # fmt: skip
    with pytest.raises(FormatError, match=r"layer sha256:.*bzip2"):
        copy(f"oci:{write_layout(tmp_path / 'in', members)}", f"oci:{tmp_path}/out", compression="zstd")
