"""The documents of an image: index, manifest and config, of OCI and of docker's schema 2.

Every document keeps the bytes it was read from, because its digest is over them: fields that layerfs does not know
survive. What a document is follows from its body; a body that can be read as two kinds is refused. The one invariant:
a ``parse`` either returns a document whose every field has the documented type, or raises
:class:`~layerfs.errors.FormatError` with the path of the member that is wrong.

Sizes and digests of the things a document points to are for the reader of those things to verify; :func:`check_blob`
does it for content that is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from layerfs.errors import DigestMismatch, FormatError, IntegrityError, InvalidReference, UnsupportedFormat
from layerfs.formats.digest import Digest
from layerfs.formats.document import JsonObject, parse_document
from layerfs.formats.media_type import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    document_kind,
    layer_compression,
)
from layerfs.formats.platform import Platform

__all__ = [
    "IMAGE_NAME",
    "LAYOUT_VERSION",
    "REF_NAME",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "check_blob",
    "check_layer_count",
    "check_media_type",
    "parse_layout_marker",
    "parse_manifest_or_index",
]

#: The only version of the layout that exists; the file ``oci-layout`` names it.
LAYOUT_VERSION: Final = "1.0.0"

#: What an image is called in a layout.
REF_NAME = "org.opencontainers.image.ref.name"
#: What containerd and docker write beside the ref name, with the whole reference.
IMAGE_NAME = "io.containerd.image.name"
#: What BuildKit writes on index entries that are attestations about another entry.
_ATTESTATION = ("vnd.docker.reference.type", "attestation-manifest")
_SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content: what it is, its digest and its size.

    Attributes:
        media_type: what the content is announced to be.
        digest: digest of the content as stored or sent.
        size: size of the content in bytes, never negative.
        annotations: free-form text.
        platform: for entries of an index, what the image is made for; None when it does not say.
        urls: other places to fetch from; never followed unless a user asks.
        artifact_type: type of the artifact behind a manifest; None for images.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str | None = None

    @classmethod
    def parse(cls, members: JsonObject) -> Self:
        """Read a descriptor out of a document.

        Raises:
            FormatError: a member is missing or of the wrong type, the size is negative, the digest or platform is none.

        Source: OCI image-spec v1.1 descriptor.md, "Properties"; image-index.md for ``platform``.
        """
        platform = members.optional_child("platform")
        return cls(
            media_type=members.text("mediaType"),
            digest=members.digest("digest"),
            size=members.size("size"),
            annotations=members.text_map("annotations"),
            platform=None if platform is None else _read_platform(platform),
            urls=members.texts("urls"),
            artifact_type=members.optional_text("artifactType") or None,
        )

    @property
    def ref_name(self) -> str | None:
        """The name of this entry in an image layout (``org.opencontainers.image.ref.name``), or None."""
        return self.annotations.get(REF_NAME) or None

    @property
    def image_name(self) -> str | None:
        """The whole reference that docker and containerd record beside the ref name, or None."""
        return self.annotations.get(IMAGE_NAME) or None

    @property
    def is_image(self) -> bool:
        """Whether an index entry can be an image, or an index of images, and no attestation or other artifact."""
        key, value = _ATTESTATION
        return (
            document_kind(self.media_type) in {"manifest", "index"}
            and self.artifact_type in {None, *CONFIG_TYPES}  # an image's may be that of its config (image-index.md)
            and not (self.platform is not None and self.platform.is_unknown)
            and self.annotations.get(key) != value
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one image for one platform.

    Attributes:
        raw: the bytes as received.
        digest: digest of ``raw``.
        media_type: as the body says, or the OCI type when it says nothing.
        declares_media_type: whether the body says so.
        config: descriptor of the image config.
        layers: descriptors of the layers, bottom first.
        annotations: free-form text.
        subject: descriptor of the manifest that this one is about, or None.
        artifact_type: type of the artifact; None for images.
    """

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    declares_media_type: bool
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @classmethod
    def parse(cls, raw: bytes, *, algorithm: str = "sha256") -> Self:
        """Read a manifest of OCI or of docker's schema 2.

        Args:
            raw: the bytes as received.
            algorithm: for ``digest``; the one by which the manifest was asked for.

        Raises:
            FormatError: the document breaks its format, or is an index as well.
            LimitExceeded: it is too large or too deep.
            UnsupportedFormat: a manifest of docker's schema 1, or a media type that is no manifest.
            InvalidReference: the algorithm is not supported.

        Source: OCI image-spec v1.1 manifest.md; docker "Image Manifest V 2, Schema 2".
        """
        top = JsonObject(parse_document(raw, "manifest"))
        media_type = _check_kind(top, MANIFEST_TYPES, OCI_MANIFEST, not_both=("manifests", "fsLayers"))
        subject = top.optional_child("subject")
        if not isinstance(top.members.get("layers"), list):
            # Absent and empty are not the same here: without the member this is no manifest at all.
            raise top.error("layers", "must be an array")
        return cls(
            raw=raw,
            digest=Digest.of(raw, algorithm),
            media_type=media_type,
            declares_media_type=bool(top.members.get("mediaType")),
            config=Descriptor.parse(top.child("config")),
            layers=tuple(Descriptor.parse(layer) for layer in top.children("layers")),
            annotations=top.text_map("annotations"),
            subject=None if subject is None else Descriptor.parse(subject),
            artifact_type=top.optional_text("artifactType") or None,
        )

    def check_config(self) -> None:
        """Refuse a manifest whose config is none of an image.

        Raises:
            UnsupportedFormat: it is something else; the message names its type.
        """
        if self.config.media_type not in CONFIG_TYPES:
            kind = self.artifact_type or self.config.media_type
            raise UnsupportedFormat(f"not a container image but {kind!r:.120}", where="config.mediaType")

    def check_image(self) -> None:
        """Refuse a manifest that is well formed but describes something that cannot be mounted.

        Raises:
            UnsupportedFormat: the config is no image config, or a layer is encrypted, foreign or of an unknown type;
                ``where`` is a path such as ``layers[3].mediaType``, the message names the type.
        """
        self.check_config()
        for position, layer in enumerate(self.layers):
            layer_compression(layer.media_type, where=f"layers[{position}].mediaType")


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests: the platforms of one image, or the images of a layout.

    Attributes:
        raw: the bytes as received.
        digest: digest of ``raw``.
        media_type: as the body says, or the OCI type when it says nothing.
        declares_media_type: whether the body says so.
        manifests: all entries in the order of the document, attestations included; an entry may be an index itself.
        annotations: free-form text.
        subject: descriptor of the manifest that this index is about, or None.
        artifact_type: type of the artifact; None for images.
    """

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    declares_media_type: bool
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @classmethod
    def parse(cls, raw: bytes, *, algorithm: str = "sha256") -> Self:
        """Read an image index of OCI or a manifest list of docker.

        Args:
            raw: the bytes as received.
            algorithm: for ``digest``; the one by which the index was asked for.

        Raises:
            FormatError: the document breaks its format, or is a manifest as well.
            LimitExceeded: it is too large or too deep.
            UnsupportedFormat: a manifest of docker's schema 1, or a media type that is no index.
            InvalidReference: the algorithm is not supported.

        Source: OCI image-spec v1.1 image-index.md; docker "Image Manifest V 2, Schema 2", "Manifest List".
        """
        top = JsonObject(parse_document(raw, "index"))
        media_type = _check_kind(top, INDEX_TYPES, OCI_INDEX, not_both=("layers", "config", "fsLayers"))
        subject = top.optional_child("subject")
        if "manifests" not in top.members:
            raise top.error("manifests", "is missing")
        return cls(
            raw=raw,
            digest=Digest.of(raw, algorithm),
            media_type=media_type,
            declares_media_type=bool(top.members.get("mediaType")),
            manifests=tuple(Descriptor.parse(entry) for entry in top.children("manifests")),
            annotations=top.text_map("annotations"),
            subject=None if subject is None else Descriptor.parse(subject),
            artifact_type=top.optional_text("artifactType") or None,
        )

    @property
    def images(self) -> tuple[Descriptor, ...]:
        """The entries that can be images, in order: no attestations, no other artifacts."""
        return tuple(entry for entry in self.manifests if entry.is_image)


@dataclass(frozen=True, slots=True)
class History:
    """One step in the making of an image.

    Attributes:
        created: nanoseconds since 1970-01-01T00:00:00Z, or None.
        created_by: the command; empty when unknown.
        author: empty when unknown.
        comment: empty when there is none.
        empty_layer: whether the step made no layer.
    """

    created: int | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The config of an image: its platform, its layers' diff IDs, its history, and how to run it.

    Attributes:
        raw: the bytes as received; their digest is the image ID.
        digest: digest of ``raw``.
        platform: what the image is made for. A config that leaves out the system or the architecture, as old builders
            do, says ``unknown`` there.
        created: nanoseconds since 1970-01-01T00:00:00Z, or None.
        author: empty when unknown.
        diff_ids: digests of the uncompressed layer tars, bottom first.
        history: steps, first to last; see :meth:`layer_history`.
        config: defaults for running it, as they are in the document. They are data: names and paths in here are
            chosen by the image and mean nothing on the host.
    """

    raw: bytes = field(repr=False)
    digest: Digest
    platform: Platform
    created: int | None
    author: str
    diff_ids: tuple[Digest, ...]
    history: tuple[History, ...] = field(repr=False)
    config: Mapping[str, object] = field(repr=False, hash=False)

    @classmethod
    def parse(cls, raw: bytes, *, algorithm: str = "sha256") -> Self:
        """Read an image config of OCI or docker.

        Args:
            raw: the bytes as received.
            algorithm: for ``digest``; the one in the manifest's descriptor.

        Raises:
            FormatError: the document breaks its format, ``rootfs.type`` is not ``layers``, or the document is a
                manifest or index.
            LimitExceeded: it is too large or too deep.
            InvalidReference: the algorithm is not supported.

        Source: OCI image-spec v1.1 config.md, "Properties"; docker image specification v1.2.
        """
        top = JsonObject(parse_document(raw, "config"))
        for member in ("layers", "manifests", "fsLayers"):
            if top.has(member):
                raise top.error(member, "does not belong into an image config")
        rootfs = top.child("rootfs")
        if (kind := rootfs.text("type")) != "layers":
            raise rootfs.error("type", f"must be 'layers', not {kind!r:.60}")
        settings = top.optional_child("config")
        return cls(
            raw=raw,
            digest=Digest.of(raw, algorithm),
            platform=_read_platform(top) or Platform("unknown", "unknown"),
            created=top.timestamp("created"),
            author=top.optional_text("author") or "",
            diff_ids=rootfs.digests("diff_ids"),
            history=tuple(
                History(
                    created=step.timestamp("created"),
                    created_by=step.optional_text("created_by") or "",
                    author=step.optional_text("author") or "",
                    comment=step.optional_text("comment") or "",
                    empty_layer=step.flag("empty_layer"),
                )
                for step in top.children("history")
            ),
            config={} if settings is None else settings.members,
        )

    @property
    def architecture(self) -> str:
        """The processor architecture, normalised."""
        return self.platform.architecture

    @property
    def os(self) -> str:
        """The operating system, normalised."""
        return self.platform.os

    @property
    def variant(self) -> str | None:
        """The variant of the architecture, normalised, or None."""
        return self.platform.variant

    def layer_history(self) -> tuple[History | None, ...]:
        """Return the step that made each layer, bottom first.

        Returns:
            One item per diff ID. All are None when the steps that made a layer are not as many as the layers: builders
            write such histories, they do no harm, but no step can then be told to belong to a layer.
        """
        steps = [step for step in self.history if not step.empty_layer]
        if len(steps) != len(self.diff_ids):
            return (None,) * len(self.diff_ids)
        return tuple(steps)


def parse_manifest_or_index(raw: bytes, *, algorithm: str = "sha256") -> Manifest | Index:
    """Read a document that may be either, as registries and layouts hand them out.

    Args:
        raw: the bytes as received.
        algorithm: for ``digest``; the one by which the document was asked for.

    Raises:
        FormatError: neither manifest nor index, both of them, or broken.
        LimitExceeded: it is too large or too deep.
        UnsupportedFormat: a manifest of docker's schema 1, or another media type.
        InvalidReference: the algorithm is not supported.
    """
    top = JsonObject(parse_document(raw, "manifest or index"))
    if top.has("manifests") or top.optional_text("mediaType") in INDEX_TYPES:
        return Index.parse(raw, algorithm=algorithm)
    return Manifest.parse(raw, algorithm=algorithm)


def check_media_type(document: Manifest | Index, descriptor: Descriptor, *, where: str = "mediaType") -> None:
    """Refuse a document that its descriptor, or the registry's answer, announced as something else.

    One content that two programs read as two kinds of document is how a signature for one image is used for another.

    Args:
        document: what was read.
        descriptor: what pointed to it.
        where: place for the error.

    Raises:
        FormatError: the body's media type is another one than the descriptor's, or says nothing and is of another kind.

    Source: OCI image-spec v1.1 manifest.md, "mediaType"; CVE-2021-41190.
    """
    announced = descriptor.media_type
    if not document.declares_media_type and document_kind(announced) == document_kind(document.media_type):
        return
    if document.media_type != announced:
        raise FormatError(f"body is {document.media_type!r:.120}, announced was {announced!r:.120}", where=where)


def check_layer_count(manifest: Manifest, config: ImageConfig) -> None:
    """Refuse a manifest and a config that do not speak of the same stack of layers.

    Raises:
        FormatError: their numbers of layers differ.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise FormatError(
            f"{len(config.diff_ids)} diff IDs for the {len(manifest.layers)} layers of the manifest",
            where="rootfs.diff_ids",
        )


def check_blob(raw: bytes, descriptor: Descriptor, what: str) -> None:
    """Refuse content that is not what its descriptor promises.

    Args:
        raw: the content, whole.
        descriptor: what pointed to it.
        what: name of the content for the error, such as ``config``.

    Raises:
        IntegrityError: the size differs.
        DigestMismatch: the digest differs.
    """
    if len(raw) != descriptor.size:
        raise IntegrityError(f"{what} {descriptor.digest}: {len(raw)} bytes, expected {descriptor.size}")
    actual = Digest.of(raw, descriptor.digest.algorithm)
    if actual != descriptor.digest:
        raise DigestMismatch(what, expected=str(descriptor.digest), actual=str(actual), size=len(raw))


def parse_layout_marker(raw: bytes) -> str:
    """Read the file ``oci-layout``, which marks a directory or archive as an image layout.

    Returns:
        The version, always :data:`LAYOUT_VERSION`.

    Raises:
        FormatError: the document breaks its format.
        UnsupportedFormat: the layout has another version.

    Source: OCI image-spec v1.1 image-layout.md, "oci-layout file".
    """
    version = JsonObject(parse_document(raw, "oci-layout")).text("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise UnsupportedFormat(f"version {version!r:.40} is not supported", where="imageLayoutVersion")
    return version


def _check_kind(top: JsonObject, types: frozenset[str], default: str, *, not_both: Sequence[str]) -> str:
    """Return the media type of a document after checking that it is of one kind only."""
    kind = document_kind(default)
    version = top.optional_integer("schemaVersion")
    declared = top.optional_text("mediaType") or None
    if version == 1 or (declared is not None and document_kind(declared) == "schema 1"):
        raise UnsupportedFormat(
            "docker schema 1 manifests are not supported",
            where="schemaVersion",
            hint="push the image again with a docker of 2016 or later, or convert it with skopeo copy",
        )
    if version != _SCHEMA_VERSION:
        found = "is missing" if version is None else f"must be {_SCHEMA_VERSION}, not {version}"
        raise top.error("schemaVersion", found)
    if declared is not None and declared not in types:
        raise UnsupportedFormat(f"media type is not one of an image {kind}: {declared!r:.120}", where="mediaType")
    for member in not_both:
        if top.has(member):
            raise top.error(member, f"does not belong into an image {kind}")
    return declared or default


def _read_platform(members: JsonObject) -> Platform | None:
    """Read the platform out of an index entry or a config, which spell it alike; None where nothing is said."""
    system, architecture = members.optional_text("os"), members.optional_text("architecture")
    if not system and not architecture:
        return None
    try:
        return Platform(
            system or "unknown",
            architecture or "unknown",
            members.optional_text("variant") or None,
            members.optional_text("os.version") or None,
        )
    except InvalidReference as error:
        raise FormatError(str(error), where=members.where or "os, architecture, variant") from error
