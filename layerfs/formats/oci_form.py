"""Docker's manifests in the form of OCI: what they mean is the same, their media types are not; and changed indexes.

Source: OCI image-spec v1.1 media-types.md, "Compatibility Matrix".
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from layerfs.formats.digest import Digest
from layerfs.formats.media_type import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
)

__all__ = ["about", "as_oci", "index_as_oci", "index_of"]

#: The annotation by which builders say of which manifest an attestation is.
_ATTESTED = "vnd.docker.reference.digest"

_FORMS = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}


def as_oci(raw: bytes) -> bytes:
    """Return an image manifest in OCI's form; config and layers keep their bytes and digests.

    Args:
        raw: a manifest of either form, well formed.
    """
    document = json.loads(raw)
    document["mediaType"] = OCI_MANIFEST
    for descriptor in (document["config"], *document["layers"]):
        descriptor["mediaType"] = _FORMS.get(descriptor["mediaType"], descriptor["mediaType"])
    return _dump(document)


def index_as_oci(raw: bytes, forms: Mapping[Digest, bytes]) -> bytes:
    """Return an index in OCI's form.

    Args:
        raw: an index of either form, well formed.
        forms: for documents that it lists, their bytes in OCI's form; others are listed as they are.
    """
    document = json.loads(index_of(raw, forms))
    document["mediaType"] = OCI_INDEX
    for entry in document["manifests"]:
        entry["mediaType"] = _FORMS.get(entry["mediaType"], entry["mediaType"])
    return _dump(document)


def index_of(raw: bytes, forms: Mapping[Digest, bytes]) -> bytes:
    """Return an index that lists other documents where there are such.

    Args:
        raw: an index of either form, well formed.
        forms: by the digest that it lists, what it is to list instead: of the same kind and form, with other bytes.
    """
    document = json.loads(raw)
    digests = {str(digest): str(Digest.of(form, digest.algorithm)) for digest, form in forms.items()}
    for entry in document["manifests"]:
        digest = Digest.parse(entry["digest"])
        if digest in forms:
            entry["digest"] = digests[str(digest)]
            entry["size"] = len(forms[digest])
            entry.pop("data", None)  # of the old one
        annotations = entry.get("annotations")
        if isinstance(annotations, dict) and annotations.get(_ATTESTED) in digests:
            annotations[_ATTESTED] = digests[annotations[_ATTESTED]]
    return _dump(document)


def about(raw: bytes, forms: Mapping[Digest, bytes]) -> bytes:
    """Return a manifest whose subject is what has become of it.

    Args:
        raw: a manifest with a subject, well formed.
        forms: as for :func:`index_of`.
    """
    document = json.loads(raw)
    subject = document["subject"]
    form = forms.get(Digest.parse(subject["digest"]))
    if form is None:
        return raw
    subject["digest"], subject["size"] = str(Digest.of(form, Digest.parse(subject["digest"]).algorithm)), len(form)
    subject.pop("data", None)  # of the old one
    return _dump(document)


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
