"""Which entry of an index is taken, and what is looked at for that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerfs.errors import LayerfsError, LimitExceeded, NotFound, Unauthorized, Unreachable
from layerfs.formats.digest import Digest
from layerfs.formats.media_type import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from layerfs.formats.oci import Descriptor, Index
from layerfs.formats.platform import Platform
from layerfs.registry.choice import choose_entry

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


class Documents:
    """Documents by digest; ``read`` is what was asked for, in order."""

    def __init__(self) -> None:
        self.known: dict[Digest, bytes] = {}
        self.read: list[Digest] = []

    def __call__(self, descriptor: Descriptor) -> bytes:
        self.read.append(descriptor.digest)
        return self.known[descriptor.digest]

    def put(self, document: dict[str, Any], media_type: str, **more: Any) -> dict[str, Any]:
        raw = json.dumps(document).encode()
        self.known[Digest.of(raw)] = raw
        return {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw), **more}

    def image(self, architecture: str, **more: Any) -> dict[str, Any]:
        config = {"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []}}
        manifest = {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": self.put(config, OCI_CONFIG), "layers": [],
        }  # fmt: skip
        return self.put(manifest, OCI_MANIFEST, **more)

    def index(self, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.put({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}, OCI_INDEX, **more)


def entries(*found: dict[str, Any]) -> tuple[Descriptor, ...]:
    return Index.parse(json.dumps({"schemaVersion": 2, "manifests": found}).encode()).images


def named(architecture: str) -> dict[str, Any]:
    return {"platform": {"os": "linux", "architecture": architecture}}


def test_entries_that_name_platforms_are_not_looked_into() -> None:
    documents = Documents()
    found = entries(documents.image("arm64", **named("arm64")), documents.image("amd64", **named("amd64")))
    assert choose_entry(found, AMD64, documents) == found[1]
    assert choose_entry(found, ARM64, documents) == found[0]
    with pytest.raises(NotFound):
        choose_entry(found, Platform("linux", "s390x"), documents)
    with pytest.raises(NotFound):  # the only one is not good enough by that alone
        choose_entry(found[:1], AMD64, documents)
    assert documents.read == []


def test_entries_that_name_none_are() -> None:
    documents = Documents()
    found = entries(documents.image("arm64"), documents.index(documents.image("arm64"), documents.image("amd64")))
    assert choose_entry(found, AMD64, documents) == found[1]
    assert choose_entry(found, ARM64, documents) == found[0]
    assert choose_entry(found[:1], AMD64, documents) == found[0]
    with pytest.raises(NotFound) as caught:
        choose_entry(found, Platform("linux", "s390x"), documents)
    assert "linux/arm64" in str(caught.value.hint)


def test_each_document_is_read_once() -> None:
    documents = Documents()
    index = documents.image("arm64")
    for _ in range(4):
        index = documents.index(*(index | {"annotations": {"number": str(number)}} for number in range(30)))
    found = entries(*(index | {"annotations": {"number": str(number)}} for number in range(30)))
    assert choose_entry(found, ARM64, documents) == found[0]
    assert len(documents.read) == len(set(documents.read)) <= 6


def test_not_too_many_are_looked_into() -> None:
    documents = Documents()
    found = entries(*(documents.index(documents.image(f"cpu{number}")) for number in range(60)))
    with pytest.raises(LimitExceeded):
        choose_entry(found, AMD64, documents)
    assert len(documents.read) <= 200


@pytest.mark.parametrize("error", [Unreachable("cut off"), Unauthorized("who are you?")])
def test_what_a_registry_does_not_answer_is_not_passed_over(error: LayerfsError) -> None:
    """The next best image would be taken for it."""
    documents = Documents()
    listed = entries(documents.image("amd64"), documents.image("arm64"))
    assert choose_entry(listed, ARM64, documents) == listed[1]

    def read(descriptor: Descriptor) -> bytes:
        if descriptor.digest == listed[1].digest:
            raise error
        return documents(descriptor)

    with pytest.raises(type(error)):
        choose_entry(listed, ARM64, read)
