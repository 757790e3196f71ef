"""From the documents of an archive to what has to be loaded: which images, of which layers, under which names.

The same code serves archives that are read at will (documents first, then layers) and streams (layers first).

Sources: OCI image-spec v1.1 image-layout.md; docker image specification v1.2; container-libs
docs/containers-transports.5.md for how references select.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from layerfs.errors import DigestMismatch, FormatError, InvalidReference, NotFound
from layerfs.formats.amend import make_manifest
from layerfs.formats.digest import Digest
from layerfs.formats.docker import ArchiveImage, parse_archive_manifest
from layerfs.formats.image_layout import blob_path
from layerfs.formats.media_type import OCI_LAYER
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
from layerfs.formats.reference import Reference
from layerfs.registry.choice import MAX_IMAGES, MAX_NESTING, choose_entry

__all__ = ["TOP_DOCUMENTS", "ImagePlan", "LayerPlan", "Selection", "plan_images", "synthesize_manifest"]

#: The documents that say what an archive is.
TOP_DOCUMENTS = ("oci-layout", "index.json", "manifest.json")

#: How the file ``version`` begins in what skopeo's ``dir:`` writes, where ``manifest.json`` is another document.
_DIRECTORY_VERSION = b"Directory Transport Version:"

_CONFIG_NAME = re.compile(r"(?:blobs/(sha256|sha512)/)?([0-9a-f]{64}|[0-9a-f]{128})(?:\.json)?")

#: Reads a document of the archive by name; None when there is none.
ReadDocument = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer of an image.

    Attributes:
        member: its name in the archive.
        diff_id: digest of the uncompressed tar, from the config.
        blob: digest and size of the member as stored, from the manifest; None where the archive does not say.
    """

    member: str
    diff_id: Digest
    blob: Descriptor | None


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """One image to load.

    Attributes:
        config: its config.
        manifest: digest and bytes; None for docker archives, which have none.
        layers: bottom first.
        names: what it is to be called.
        origin: the repository that it is from, the digest by which that has it, and whether that was asked for and is
            all that names it; None for archives.
    """

    config: ImageConfig
    manifest: tuple[Digest, bytes] | None
    layers: tuple[LayerPlan, ...]
    names: tuple[Reference, ...]
    origin: tuple[str, Digest, bool] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user wants of an archive.

    Attributes:
        platform: of an image for several platforms, this one.
        platform_required: whether images for other platforms are an error even when they are all there is.
        all_platforms: all of them instead.
        reference: only the image of this name; None means all images.
        position: only the image at this place, from 0.
        stem: what images are called whose archive gives only a tag: the archive's own name, or None.
        form: ``oci`` or ``docker`` to read the archive as only that; None for what it is.
        name: what the image is to be called, instead of what it is called there; of several, the one for the platform.
        admit: told what kind of archive it is, before anything in it counts; raises if it is not to be let in.
    """

    platform: Platform
    platform_required: bool = False
    all_platforms: bool = False
    reference: str | None = None
    position: int | None = None
    stem: str | None = None
    form: Literal["oci", "docker"] | None = None
    name: Reference | None = None
    admit: Callable[[Literal["oci", "docker"]], None] | None = None


def plan_images(read: ReadDocument, selection: Selection) -> list[ImagePlan]:
    """Return the images to load, from ``index.json`` when the archive is an OCI layout, else from ``manifest.json``.

    Raises:
        FormatError: neither is there, or a document is broken; UnsupportedFormat for images that cannot be mounted.
        IntegrityError: a document is not what its descriptor promises.
        NotFound: a document is missing, or nothing fits the selection.
        Denied: ``admit`` refuses.
    """
    marker, index, manifest = (read(name) for name in TOP_DOCUMENTS)
    if selection.form == "oci" and index is None:
        raise FormatError("no OCI archive: it has no index.json", hint="Try the transport docker-archive:")
    if selection.form == "docker":
        if manifest is None:
            raise FormatError("no docker archive: it has no manifest.json", hint="Try the transport oci-archive:")
        index = None
    if selection.admit is not None:
        selection.admit("docker" if index is None else "oci")
    if index is not None:
        if marker is None and manifest is None:
            raise FormatError("index.json without oci-layout is no image layout")
        if marker is not None:
            parse_layout_marker(marker)
        images = _Layout(read, selection).images(Index.parse(index))
        # docker save writes both documents, and only the second has whole names.
        if manifest is not None:
            images = _add_tags(images, parse_archive_manifest(manifest), read)
    elif (read("version") or b"").startswith(_DIRECTORY_VERSION):
        raise FormatError(
            "no image archive: a directory of the dir: transport", hint="Try: layerfs copy dir:DIRECTORY store:NAME"
        )
    elif manifest is not None:
        images = [_archive_image(image, read) for image in parse_archive_manifest(manifest)]
    else:
        raise FormatError("no image archive: it has neither index.json nor manifest.json")
    return _select(images, selection)


def synthesize_manifest(config: ImageConfig, sizes: Iterable[int]) -> tuple[Digest, bytes]:
    """Return the manifest of an image that came without one: its layers uncompressed.

    Args:
        config: the image's config.
        sizes: of the uncompressed layers, bottom first.
    """
    pairs = zip(config.diff_ids, sizes, strict=True)
    return make_manifest(config, [Descriptor(OCI_LAYER, diff_id, size) for diff_id, size in pairs])


class _Layout:
    """Walks the indexes of one layout."""

    def __init__(self, read: ReadDocument, selection: Selection) -> None:
        self._read = read
        self._selection = selection

    def images(self, top: Index) -> list[ImagePlan]:
        """Return one plan per image of the layout; an image for several platforms counts once unless all are wanted."""
        groups: dict[str | None, list[Descriptor]] = {}
        wanted = self._wanted(top)
        if not wanted:
            raise FormatError("index.json lists no image")
        for position, entry in enumerate(wanted):
            # Entries of one name are one image for several platforms; nameless ones too, if they name platforms.
            name = entry.image_name or entry.ref_name
            key = name if name is not None or entry.platform is not None else f"\0{position}"
            groups.setdefault(key, []).append(entry)
        plans: list[ImagePlan] = []
        for entries in groups.values():
            plans += self._expand(entries, _name(entries[0], self._selection), 0)
        return plans

    def _wanted(self, top: Index) -> list[Descriptor]:
        entries = list(top.images)
        reference, position = self._selection.reference, self._selection.position
        if position is not None:
            if position >= len(entries):
                raise NotFound("image in the layout", f"@{position}", hint=f"It has {len(entries)}, counted from @0.")
            return [entries[position]]
        if reference is None:
            return entries
        found = [entry for entry in entries if reference in (entry.ref_name, entry.image_name)]
        if not found:
            names = sorted({entry.ref_name or entry.image_name or "<none>" for entry in entries})
            raise NotFound("image in the layout", reference, hint=f"There is: {', '.join(names[:20]) or 'nothing'}.")
        return found

    def _expand(self, entries: list[Descriptor], name: Reference | None, depth: int) -> list[ImagePlan]:
        if depth > MAX_NESTING:
            raise FormatError(f"indexes are nested more than {MAX_NESTING} deep")
        if self._selection.all_platforms or len(entries) == 1:
            # What is the only one in an archive is loaded whatever it was built for, as by every other tool.
            chosen = entries
        else:
            chosen = [choose_entry(entries, self._selection.platform, self._document)]
        plans: list[ImagePlan] = []
        for entry in chosen:
            raw = self._document(entry)
            document = parse_manifest_or_index(raw, algorithm=entry.digest.algorithm)
            check_media_type(document, entry)
            if isinstance(document, Index):
                if not document.images:
                    raise FormatError(f"index {entry.digest} lists no image")
                plans += self._expand(list(document.images), name, depth + 1)
            else:
                plans.append(self._image(document, name))
            if len(plans) > MAX_IMAGES:
                raise FormatError(f"archive has more than {MAX_IMAGES} images")
        return plans

    def _image(self, manifest: Manifest, name: Reference | None) -> ImagePlan:
        manifest.check_image()
        raw = self._document(manifest.config)
        config = ImageConfig.parse(raw, algorithm=manifest.config.digest.algorithm)
        check_layer_count(manifest, config)
        layers = tuple(
            LayerPlan(blob_path(blob.digest), diff_id, blob)
            for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        return ImagePlan(config, (manifest.digest, manifest.raw), layers, (name,) if name else ())

    def _document(self, descriptor: Descriptor) -> bytes:
        raw = self._read(blob_path(descriptor.digest))
        if raw is None:
            raise NotFound("blob", str(descriptor.digest), hint="The archive is not complete.")
        check_blob(raw, descriptor, "blob")
        return raw


def _name(entry: Descriptor, selection: Selection) -> Reference | None:
    """Return what to call an entry of a layout: its whole name if it has one, else the archive's with its tag."""
    for text in (entry.image_name, entry.ref_name):
        if text and ("/" in text or ":" in text):
            try:
                return Reference.parse(text).with_default_tag()
            except InvalidReference:
                continue
    if entry.ref_name and selection.stem:
        try:
            return Reference.parse(f"localhost/{selection.stem}:{entry.ref_name}")
        except InvalidReference:
            return None
    return None


def _archive_image(image: ArchiveImage, read: ReadDocument) -> ImagePlan:
    config = _archive_config(image, read)
    if len(image.layers) != len(config.diff_ids):
        raise FormatError(
            f"{len(config.diff_ids)} diff IDs for the {len(image.layers)} layers of manifest.json",
            where="rootfs.diff_ids",
        )
    pairs = zip(image.layers, config.diff_ids, strict=True)
    layers = tuple(LayerPlan(member, diff_id, None) for member, diff_id in pairs)
    return ImagePlan(config, None, layers, _tags(image))


def _archive_config(image: ArchiveImage, read: ReadDocument) -> ImageConfig:
    raw = read(image.config)
    if raw is None:
        raise NotFound("member of the archive", image.config, hint="The archive is not complete.")
    named = _CONFIG_NAME.fullmatch(image.config)
    # A bare name tells the algorithm by its length.
    algorithm = (named and (named[1] or ("sha512" if len(named[2]) == 128 else None))) or "sha256"
    config = ImageConfig.parse(raw, algorithm=algorithm)
    if named is not None and len(named[2]) == len(config.digest.hex) and named[2] != config.digest.hex:
        raise DigestMismatch(
            "image config", expected=f"{algorithm}:{named[2]}", actual=str(config.digest), size=len(raw)
        )
    return config


def _tags(image: ArchiveImage) -> tuple[Reference, ...]:
    found = []
    for tag in image.repo_tags:
        try:
            reference = Reference.parse(tag).with_default_tag()
        except InvalidReference as error:
            raise FormatError(str(error), where="RepoTags") from error
        # A digest is no name to give: it says what an image is, and nothing here has compared it.
        if reference.digest is None:
            found.append(reference)
    return tuple(dict.fromkeys(found))


def _add_tags(images: list[ImagePlan], archive: tuple[ArchiveImage, ...], read: ReadDocument) -> list[ImagePlan]:
    """Give the images of a layout the names that manifest.json has for the same configs."""
    tags: dict[Digest, tuple[Reference, ...]] = {}
    for image in archive:
        digest = _archive_config(image, read).digest
        tags[digest] = tags.get(digest, ()) + _tags(image)
    named = []
    for plan in images:
        names = tuple(dict.fromkeys(tags.get(plan.config.digest) or plan.names))
        named.append(ImagePlan(plan.config, plan.manifest, plan.layers, names))
    return named


def _select(images: list[ImagePlan], selection: Selection) -> list[ImagePlan]:
    """Narrow a docker archive to one image, check the platform, and let each name mean one image."""
    if images and images[0].manifest is None:
        images = _select_archive(images, selection)
    if selection.platform_required:
        # Without a wish an archive of one image is loaded whatever it was built for, as by every other tool.
        found = [plan.config.platform for plan in images]
        images = [plan for plan in images if selection.platform.matches(plan.config.platform)]
        if not images:
            hint = f"There is: {', '.join(sorted(map(str, found)))}."
            raise NotFound("platform in the archive", str(selection.platform), hint=hint)
    if selection.name is not None and len(images) > 1 and not selection.all_platforms:
        raise FormatError(f"{len(images)} images cannot have one name", hint="Say which one of them is meant.")
    if selection.name is not None:
        images = [replace(plan, names=(selection.name,)) for plan in images]
    # Of several images with one name the one for the wanted platform keeps it, else the first.
    owners: dict[Reference, ImagePlan] = {}
    for plan in sorted(images, key=lambda plan: not selection.platform.matches(plan.config.platform)):
        for name in plan.names:
            owners.setdefault(name, plan)
    return [
        ImagePlan(plan.config, plan.manifest, plan.layers, tuple(name for name in plan.names if owners[name] is plan))
        for plan in images
    ]


def _select_archive(images: list[ImagePlan], selection: Selection) -> list[ImagePlan]:
    if selection.position is not None:
        if selection.position >= len(images):
            hint = f"It has {len(images)}, counted from @0."
            raise NotFound("image in the archive", f"@{selection.position}", hint=hint)
        return [images[selection.position]]
    if selection.reference is None:
        return images
    wanted = Reference.parse(selection.reference).with_default_tag()
    found = [plan for plan in images if wanted in plan.names]
    if not found:
        names = sorted(str(name) for plan in images for name in plan.names)
        raise NotFound("image in the archive", str(wanted), hint=f"There is: {', '.join(names[:20]) or 'nothing'}.")
    return [ImagePlan(found[0].config, None, found[0].layers, (wanted,))]
