"""Media types of image documents and layers, and which of them layerfs reads.

Media types are announcements. What a document is gets decided by its body, and how a layer is compressed by its magic
bytes; the functions here say only what was announced, and refuse by name what layerfs cannot mount.
"""

from __future__ import annotations

from typing import Final, Literal

from layerfs.errors import UnsupportedFormat

__all__ = [
    "CONFIG_TYPES",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER",
    "DOCKER_LAYER_GZIP",
    "DOCKER_LAYER_ZSTD",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "SCHEMA_1_TYPES",
    "Compression",
    "document_kind",
    "is_foreign_layer",
    "layer_compression",
]

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
#: Manifests of docker before 1.10. They carry no diff IDs, so nothing in them can be verified after decompression.
SCHEMA_1_TYPES: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

#: How the bytes of a layer were announced to be compressed.
Compression = Literal["none", "gzip", "zstd"]

_LAYER_COMPRESSION: Final[dict[str, Compression]] = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
}

_FOREIGN_PREFIXES: Final = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)


def is_foreign_layer(media_type: str) -> bool:
    """Whether a layer is not distributed with its image, but by its vendor, from the URLs of its descriptor."""
    return media_type.startswith(_FOREIGN_PREFIXES)


#: Prefixes of what registries also keep in manifests, with the word that a user knows it by.
_OTHER_CONTENT: Final = (
    ("application/vnd.in-toto", "an attestation"),
    ("application/vnd.dev.cosign", "a signature"),
    ("application/vnd.dev.sigstore", "a signature"),
    ("application/vnd.cncf.helm", "a Helm chart"),
    ("application/vnd.oci.empty.", "an empty placeholder"),
    ("application/vnd.erofs.", "an EROFS layer"),
    ("application/vnd.oci.image.layer.nydus.", "a nydus layer"),
    ("application/vnd.wasm.", "a WebAssembly module"),
    ("application/wasm", "a WebAssembly module"),
)


def document_kind(media_type: str) -> Literal["index", "manifest", "config", "schema 1"] | None:
    """Return which image document a media type announces, or None for anything else."""
    if media_type in INDEX_TYPES:
        return "index"
    if media_type in MANIFEST_TYPES:
        return "manifest"
    if media_type in CONFIG_TYPES:
        return "config"
    return "schema 1" if media_type in SCHEMA_1_TYPES else None


def layer_compression(media_type: str, *, where: str = "") -> Compression:
    """Return the compression that a layer's media type announces.

    Args:
        media_type: the media type of the layer's descriptor.
        where: place of the media type in its document, for the error.

    Returns:
        ``none``, ``gzip`` or ``zstd``. Writers get this wrong often enough that the codec must be found by magic.

    Raises:
        UnsupportedFormat: the layer is encrypted, foreign (not distributable), or no tar layer at all; the message
            names the media type.

    Source: OCI image-spec v1.1 layer.md; docker "Image Manifest V 2, Schema 2"; ocicrypt for ``+encrypted``.
    """
    known = _LAYER_COMPRESSION.get(media_type)
    if known is not None:
        return known
    if media_type.endswith("+encrypted"):
        raise UnsupportedFormat(
            f"layer is encrypted: {media_type!r:.120}", where=where, hint="decrypt the image with skopeo copy first"
        )
    if is_foreign_layer(media_type):
        raise UnsupportedFormat(
            f"layer is foreign, its content is not distributed with the image: {media_type!r:.120}", where=where
        )
    for prefix, meaning in _OTHER_CONTENT:
        if media_type.startswith(prefix):
            raise UnsupportedFormat(f"layer is {meaning}, not a tar layer: {media_type!r:.120}", where=where)
    raise UnsupportedFormat(f"unknown layer media type {media_type!r:.120}", where=where)
