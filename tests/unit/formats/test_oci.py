"""Image documents: what is read, what is refused and where, and that raw bytes survive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from layerfs.errors import DigestMismatch, FormatError, IntegrityError, UnsupportedFormat
from layerfs.formats import media_type
from layerfs.formats.digest import Digest
from layerfs.formats.oci import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_blob,
    check_layer_count,
    check_media_type,
    parse_layout_marker,
    parse_manifest_or_index,
)
from layerfs.formats.platform import Platform

SHA256 = "sha256:" + "1" * 64
SHA512 = "sha512:" + "2" * 128


def descriptor(kind: str = media_type.OCI_LAYER_GZIP, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": SHA256, "size": 7, **more}


def manifest(**more: Any) -> dict[str, Any]:
    layers = [descriptor(), descriptor(media_type.OCI_LAYER), descriptor(media_type.OCI_LAYER_ZSTD), descriptor()]
    return {"schemaVersion": 2, "config": descriptor(media_type.OCI_CONFIG), "layers": layers, **more}


def index(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": list(entries), **more}


def entry(platform: str | None = None, kind: str = media_type.OCI_MANIFEST, **more: Any) -> dict[str, Any]:
    if platform is not None:
        names = ("os", "architecture", "variant")
        more["platform"] = dict(zip(names, platform.split("/"), strict=False))
    return descriptor(kind, **more)


def config(**more: Any) -> dict[str, Any]:
    return {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [SHA256, SHA512]},
        **more,
    }


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


def replaced(document: dict[str, Any], path: str, value: Any) -> bytes:
    """Return the document with one member set, or removed when the value is Ellipsis."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = document
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return dump(document)


# Manifests


def test_manifest() -> None:
    raw = dump(
        manifest(
            mediaType=media_type.OCI_MANIFEST,
            annotations={"a": "b"},
            subject=descriptor(media_type.OCI_MANIFEST),
            artifactType="application/x",
            futureField={"kept": [1, 2]},
        )
    )
    parsed = Manifest.parse(raw)
    assert parsed.raw == raw
    assert b"futureField" in parsed.raw
    assert str(parsed.digest) == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert parsed.media_type == media_type.OCI_MANIFEST
    assert parsed.declares_media_type
    assert parsed.config == Descriptor(media_type.OCI_CONFIG, Digest.parse(SHA256), 7)
    assert [layer.media_type for layer in parsed.layers] == [
        media_type.OCI_LAYER_GZIP,
        media_type.OCI_LAYER,
        media_type.OCI_LAYER_ZSTD,
        media_type.OCI_LAYER_GZIP,
    ]
    assert parsed.annotations == {"a": "b"}
    assert parsed.subject is not None
    assert parsed.artifact_type == "application/x"
    assert hash(parsed) == hash(Manifest.parse(raw))


def test_manifest_without_a_media_type_is_ocis() -> None:
    parsed = Manifest.parse(dump(manifest()))
    assert (parsed.media_type, parsed.declares_media_type) == (media_type.OCI_MANIFEST, False)


def test_docker_manifest() -> None:
    raw = dump(
        {
            "schemaVersion": 2,
            "mediaType": media_type.DOCKER_MANIFEST,
            "config": descriptor(media_type.DOCKER_CONFIG),
            "layers": [descriptor(media_type.DOCKER_LAYER_GZIP, urls=["https://x"])],
        }
    )
    parsed = Manifest.parse(raw, algorithm="sha512")
    parsed.check_image()
    assert parsed.media_type == media_type.DOCKER_MANIFEST
    assert parsed.digest == Digest.of(raw, "sha512")
    assert parsed.layers[0].urls == ("https://x",)


def test_manifest_without_layers_is_an_image_too() -> None:
    assert Manifest.parse(dump(manifest(layers=[]))).layers == ()


def test_sha512_descriptors() -> None:
    parsed = Manifest.parse(replaced(manifest(), "layers/1/digest", SHA512))
    assert parsed.layers[1].digest == Digest.parse(SHA512)


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("schemaVersion", ..., "schemaVersion", "is missing"),
        ("schemaVersion", 3, "schemaVersion", "must be 2, not 3"),
        ("schemaVersion", True, "schemaVersion", "must be an integer, not a boolean"),
        ("schemaVersion", "2", "schemaVersion", "must be an integer, not a string"),
        ("mediaType", 5, "mediaType", "must be a string, not an integer"),
        ("config", ..., "config", "is missing"),
        ("config", [], "config", "must be an object, not an array"),
        ("config/digest", ..., "config.digest", "is missing"),
        ("layers", ..., "layers", "must be an array"),
        ("layers", None, "layers", "must be an array"),
        ("layers", {}, "layers", "must be an array"),
        ("layers/3", None, "layers[3]", "must be an object, not null"),
        ("layers/3/digest", ..., "layers[3].digest", "is missing"),
        ("layers/3/digest", 1, "layers[3].digest", "must be a string"),
        ("layers/3/digest", "sha256:../../etc", "layers[3].digest", "64 hex digits"),
        ("layers/3/digest", "md5:" + "0" * 32, "layers[3].digest", "'md5' is not supported"),
        ("layers/3/size", ..., "layers[3].size", "is missing"),
        ("layers/3/size", -1, "layers[3].size", "must not be negative"),
        ("layers/3/size", True, "layers[3].size", "not a boolean"),
        ("layers/3/size", 1.0, "layers[3].size", "not a fraction"),
        ("layers/3/size", "1", "layers[3].size", "not a string"),
        ("layers/3/mediaType", ..., "layers[3].mediaType", "is missing"),
        ("layers/3/urls", "x", "layers[3].urls", "must be an array"),
        ("layers/3/urls", [1], "layers[3].urls[0]", "must be a string"),
        ("layers/3/annotations", {"k": 1}, "layers[3].annotations['k']", "must be a string"),
        ("layers/3/platform", {"os": "a b", "architecture": "x"}, "layers[3].platform", "not the name"),
        ("layers/3/platform", {"os": 1}, "layers[3].platform.os", "must be a string"),
        ("annotations", [], "annotations", "must be an object"),
        ("subject", 1, "subject", "must be an object"),
        ("subject", {}, "subject.mediaType", "is missing"),
        ("artifactType", 1, "artifactType", "must be a string"),
        ("manifests", [], "manifests", "does not belong into an image manifest"),
        ("fsLayers", [], "fsLayers", "does not belong into an image manifest"),
    ],
)
def test_manifest_refused(path: str, value: object, where: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Manifest.parse(replaced(manifest(), path, value))
    assert caught.value.where == where
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 1, "name": "x", "tag": "y", "fsLayers": [], "history": []},
        {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
        {"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+json"},
    ],
)
@pytest.mark.parametrize("parse", [Manifest.parse, Index.parse, parse_manifest_or_index])
def test_docker_schema_1_is_refused_by_name(document: object, parse: Callable[[bytes], object]) -> None:
    with pytest.raises(UnsupportedFormat, match="docker schema 1"):
        parse(dump(document))


@pytest.mark.parametrize("kind", [media_type.OCI_INDEX, media_type.OCI_CONFIG, "text/plain"])
def test_manifest_of_another_media_type(kind: str) -> None:
    with pytest.raises(UnsupportedFormat, match=kind.replace("+", r"\+")) as caught:
        Manifest.parse(dump(manifest(mediaType=kind)))
    assert caught.value.where == "mediaType"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (media_type.OCI_LAYER_GZIP + "+encrypted", "encrypted"),
        (media_type.OCI_LAYER + "+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "foreign"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        ("application/vnd.in-toto+json", "an attestation"),
        ("application/vnd.dev.cosign.simplesigning.v1+json", "a signature"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "a Helm chart"),
        ("application/vnd.oci.image.layer.v1.tar+bzip2", "unknown layer media type"),
        ("text/plain", "unknown layer media type"),
        ("", "unknown layer media type"),
    ],
)
def test_layers_that_cannot_be_mounted(kind: str, message: str) -> None:
    parsed = Manifest.parse(replaced(manifest(), "layers/3/mediaType", kind))
    with pytest.raises(UnsupportedFormat) as caught:
        parsed.check_image()
    assert caught.value.where == "layers[3].mediaType"
    assert message in str(caught.value)
    assert repr(kind) in str(caught.value)


def test_artifacts_are_not_images() -> None:
    parsed = Manifest.parse(replaced(manifest(), "config/mediaType", "application/vnd.cncf.helm.config.v1+json"))
    with pytest.raises(UnsupportedFormat, match="helm") as caught:
        parsed.check_image()
    assert caught.value.where == "config.mediaType"


@pytest.mark.parametrize(
    ("kind", "compression"),
    [
        (media_type.OCI_LAYER, "none"),
        (media_type.OCI_LAYER_GZIP, "gzip"),
        (media_type.OCI_LAYER_ZSTD, "zstd"),
        (media_type.DOCKER_LAYER, "none"),
        (media_type.DOCKER_LAYER_GZIP, "gzip"),
        (media_type.DOCKER_LAYER_ZSTD, "zstd"),
    ],
)
def test_layer_compression(kind: str, compression: str) -> None:
    assert media_type.layer_compression(kind) == compression


# Indexes


def test_index() -> None:
    raw = dump(index(entry("linux/amd64"), entry("linux/arm64/v8"), annotations={"x": "y"}, future=1))
    parsed = Index.parse(raw)
    assert parsed.raw == raw
    assert parsed.digest == Digest.of(raw)
    assert (parsed.media_type, parsed.declares_media_type) == (media_type.OCI_INDEX, False)
    assert [str(item.platform) for item in parsed.manifests] == ["linux/amd64", "linux/arm64"]
    assert parsed.annotations == {"x": "y"}
    assert Index.parse(dump(index(mediaType=media_type.DOCKER_INDEX))).media_type == media_type.DOCKER_INDEX


@pytest.mark.parametrize("wrong", ["layers", "config", "fsLayers"])
@pytest.mark.parametrize("value", [[], {}, 0, "x"])
def test_index_that_is_a_manifest_too(wrong: str, value: object) -> None:
    with pytest.raises(FormatError) as caught:
        Index.parse(dump(index(**{wrong: value})))
    assert caught.value.where == wrong


def test_a_null_member_is_none() -> None:
    assert Index.parse(dump(index(layers=None))).manifests == ()
    assert Manifest.parse(dump(manifest(manifests=None))).artifact_type is None
    assert Index.parse(dump({"schemaVersion": 2, "manifests": None})).manifests == ()


def test_index_errors_say_where() -> None:
    with pytest.raises(FormatError) as caught:
        Index.parse(replaced(index(entry(), entry()), "manifests/1/platform", "linux/amd64"))
    assert caught.value.where == "manifests[1].platform"
    with pytest.raises(FormatError) as caught:
        Index.parse(dump({"schemaVersion": 2}))
    assert caught.value.where == "manifests"


def test_images_are_no_attestations_and_artifacts() -> None:
    parsed = Index.parse(
        dump(
            index(
                entry("unknown/unknown"),
                entry("linux/amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"}),
                entry(artifactType="application/vnd.example"),
                entry(kind="application/vnd.example+json"),
                entry("linux/arm64", size=40),
                entry("linux/amd64", size=41),
            )
        )
    )
    assert [item.size for item in parsed.images] == [40, 41]


@pytest.mark.parametrize("platform", [None, {}, {"os": "", "architecture": ""}, {"features": ["x"]}])
def test_entries_that_do_not_say_what_they_are_for(platform: object) -> None:
    parsed = Index.parse(dump(index(entry("linux/arm64"), descriptor(media_type.OCI_MANIFEST, platform=platform))))
    assert [entry.platform for entry in parsed.images] == [Platform("linux", "arm64"), None]


def test_nested_indexes_are_images() -> None:
    assert len(Index.parse(dump(index(entry(kind=media_type.OCI_INDEX)))).images) == 1


def test_names_in_a_layout() -> None:
    names = {"org.opencontainers.image.ref.name": "3.20", "io.containerd.image.name": "docker.io/library/alpine:3.20"}
    first, second = Index.parse(dump(index(entry(annotations=names), entry()))).manifests
    assert (first.ref_name, first.image_name) == ("3.20", "docker.io/library/alpine:3.20")
    assert (second.ref_name, second.image_name) == (None, None)


# Which of the two


def test_manifest_or_index() -> None:
    assert isinstance(parse_manifest_or_index(dump(manifest())), Manifest)
    assert isinstance(parse_manifest_or_index(dump(index())), Index)
    assert parse_manifest_or_index(dump(index()), algorithm="sha512").digest.algorithm == "sha512"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"schemaVersion": 2},
        config(),
        {**manifest(), "mediaType": []},
        {**manifest(), **index()},
        {**manifest(), "mediaType": media_type.OCI_INDEX},
        {**index(), "mediaType": media_type.OCI_MANIFEST},
    ],
)
def test_neither_or_both(document: object) -> None:
    with pytest.raises(FormatError):
        parse_manifest_or_index(dump(document))


@pytest.mark.parametrize(
    ("document", "announced", "fits"),
    [
        (manifest(), media_type.OCI_MANIFEST, True),
        (manifest(), media_type.DOCKER_MANIFEST, True),
        (manifest(), media_type.OCI_INDEX, False),
        (manifest(), "text/plain", False),
        (manifest(mediaType=media_type.OCI_MANIFEST), media_type.OCI_MANIFEST, True),
        (manifest(mediaType=media_type.OCI_MANIFEST), media_type.DOCKER_MANIFEST, False),
        (manifest(mediaType=""), media_type.DOCKER_MANIFEST, True),
        (index(), media_type.OCI_INDEX, True),
        (index(), media_type.DOCKER_INDEX, True),
        (index(), media_type.OCI_MANIFEST, False),
        (index(mediaType=media_type.DOCKER_INDEX), media_type.OCI_INDEX, False),
    ],
)
def test_announced_media_type(document: object, announced: str, fits: bool) -> None:
    parsed = parse_manifest_or_index(dump(document))
    pointer = Descriptor(announced, parsed.digest, len(parsed.raw))
    if fits:
        check_media_type(parsed, pointer)
    else:
        with pytest.raises(FormatError) as caught:
            check_media_type(parsed, pointer, where="manifests[2].mediaType")
        assert caught.value.where == "manifests[2].mediaType"
        assert announced in str(caught.value)


# Configs


def test_config() -> None:
    raw = dump(
        config(
            created="2026-11-02T03:04:05Z",
            author="me",
            config={"Env": ["A=b"], "Volumes": {"/../x": {}}},
            history=[
                {"created": "2026-11-02T03:04:05.5Z", "created_by": "ADD x"},
                {"created_by": "ENV A=b", "empty_layer": True, "comment": "c", "author": "d"},
                {"created_by": "RUN y", "empty_layer": False},
            ],
            future=True,
        )
    )
    parsed = ImageConfig.parse(raw)
    assert parsed.raw == raw
    assert parsed.digest == Digest.of(raw)
    assert (parsed.os, parsed.architecture, parsed.variant) == ("linux", "amd64", None)
    assert parsed.created == 1_793_588_645_000_000_000
    assert parsed.author == "me"
    assert [str(diff_id) for diff_id in parsed.diff_ids] == [SHA256, SHA512]
    assert parsed.config == {"Env": ["A=b"], "Volumes": {"/../x": {}}}
    assert [step.created_by for step in parsed.history] == ["ADD x", "ENV A=b", "RUN y"]
    assert parsed.history[0].created == 1_793_588_645_500_000_000
    assert (parsed.history[1].comment, parsed.history[1].author) == ("c", "d")
    assert parsed.layer_history() == (parsed.history[0], parsed.history[2])


def test_config_with_nothing_but_layers() -> None:
    parsed = ImageConfig.parse(dump({"rootfs": {"type": "layers", "diff_ids": None}, "history": None, "config": None}))
    assert parsed.diff_ids == ()
    assert parsed.platform.is_unknown
    assert (parsed.created, parsed.author, parsed.history, parsed.config) == (None, "", (), {})
    assert parsed.layer_history() == ()


def test_config_platform_is_normalised() -> None:
    parsed = ImageConfig.parse(dump(config(architecture="arm", variant="6")))
    assert (parsed.architecture, parsed.variant) == ("arm", "v6")


@pytest.mark.parametrize(
    "history",
    [[], [{"created_by": "a"}], [{"created_by": "a"}] * 3, [{"created_by": "a", "empty_layer": True}] * 2],
)
def test_history_that_does_not_add_up_is_not_told_of_layers(history: object) -> None:
    parsed = ImageConfig.parse(dump(config(history=history)))
    assert parsed.layer_history() == (None, None)


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("rootfs", ..., "rootfs", "is missing"),
        ("rootfs", [], "rootfs", "must be an object"),
        ("rootfs/type", ..., "rootfs.type", "is missing"),
        ("rootfs/type", "layers+base", "rootfs.type", "must be 'layers', not 'layers+base'"),
        ("rootfs/diff_ids", {}, "rootfs.diff_ids", "must be an array"),
        ("rootfs/diff_ids/1", None, "rootfs.diff_ids[1]", "is missing"),
        ("rootfs/diff_ids/1", 5, "rootfs.diff_ids[1]", "must be a string"),
        ("rootfs/diff_ids/1", "sha256:" + "A" * 64, "rootfs.diff_ids[1]", "not lower-case hex"),
        ("rootfs/diff_ids/1", "../x", "rootfs.diff_ids[1]", "not a digest"),
        ("os", 1, "os", "must be a string"),
        ("architecture", "a/b", "os, architecture, variant", "not the name"),
        ("created", "now", "created", "not a date and time"),
        ("created", 0, "created", "must be a string"),
        ("history", {}, "history", "must be an array"),
        ("history", [{"empty_layer": 1}], "history[0].empty_layer", "must be a boolean, not an integer"),
        ("history", [{"created": "x"}], "history[0].created", "not a date and time"),
        ("history", [{"created_by": []}], "history[0].created_by", "must be a string"),
        ("config", "x", "config", "must be an object"),
        ("layers", [], "layers", "does not belong into an image config"),
        ("manifests", [], "manifests", "does not belong into an image config"),
    ],
)
def test_config_refused(path: str, value: object, where: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        ImageConfig.parse(replaced(config(), path, value))
    assert caught.value.where == where
    assert message in str(caught.value)


def test_layer_count() -> None:
    parsed = ImageConfig.parse(dump(config()))
    check_layer_count(Manifest.parse(dump(manifest(layers=[descriptor()] * 2))), parsed)
    with pytest.raises(FormatError, match="2 diff IDs for the 4 layers") as caught:
        check_layer_count(Manifest.parse(dump(manifest())), parsed)
    assert caught.value.where == "rootfs.diff_ids"


# Content and layout


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_check_blob(algorithm: str) -> None:
    pointer = Descriptor(media_type.OCI_CONFIG, Digest.of(b"{}", algorithm), 2)
    check_blob(b"{}", pointer, "config")
    with pytest.raises(DigestMismatch) as caught:
        check_blob(b"[]", pointer, "config")
    assert caught.value.actual == str(Digest.of(b"[]", algorithm))
    with pytest.raises(IntegrityError, match="3 bytes, expected 2"):
        check_blob(b"{} ", pointer, "config")


def test_layout_marker() -> None:
    assert parse_layout_marker(b'{"imageLayoutVersion": "1.0.0"}') == "1.0.0"
    with pytest.raises(UnsupportedFormat, match=r"2\.0\.0"):
        parse_layout_marker(b'{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(FormatError, match="imageLayoutVersion"):
        parse_layout_marker(b"{}")
