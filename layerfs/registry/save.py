"""Writes images out as archives and layouts, in one pass and without temporary copies.

All forms are OCI layouts. A docker archive has ``manifest.json`` beside ``index.json``, as docker itself writes it, and
uncompressed layers; so whatever reads either form reads it. The layers stand first and the documents last, for the
digests of layers that are compressed on the way are known only then. Everything has mode 0644, owner 0 and time 0: the
same images give the same archive.

Each layer is digested on its way out and compared with its diffID: what is damaged does not leave the store unnoticed.

Sources: OCI image-spec v1.1 image-layout.md; docker image specification v1.2; containerd images/archive for the
annotations with names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from layerfs.errors import DigestMismatch, FormatError, LayerfsError
from layerfs.formats.amend import layer_type, make_manifest
from layerfs.formats.compress import Compressor
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.image_layout import (
    IMAGE_NAME,
    LAYOUT,
    REF_NAME,
    MemberDirectories,
    blob_path,
    encode_index,
    member_header,
    name_of,
)
from layerfs.formats.media_type import DOCKER_MANIFEST, OCI_MANIFEST, layer_compression
from layerfs.formats.oci import Descriptor, ImageConfig, Manifest
from layerfs.formats.oci_form import as_oci
from layerfs.formats.tar.writer import END, padding
from layerfs.registry.layout_directory import LayoutDirectory
from layerfs.registry.pipeline import prefetch
from layerfs.registry.target import Target
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_layers
from layerfs.store.kept_blob import has_blob
from layerfs.store.layer import LayerRecord, read_layer

__all__ = ["FORMATS", "SavedImage", "save_archive", "save_layout"]

FORMATS = ("docker-archive", "oci-archive", "oci")

_READ = 1 << 20
#: Pieces of a mebibyte that are read and digested ahead of what is written.
_AHEAD = 8

#: Compression and level of all layers, as :func:`save_archive` takes them.
_How = tuple[str | None, int | None]

#: Images to save, each with the names that it is to have there.
Wanted = Sequence[tuple[ImageRecord, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image as it was written: its ID, and the digest of its manifest there."""

    id: Digest
    manifest: Digest
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer on its way out: ``blob`` when digest and size are known beforehand, else compressed on the way."""

    record: LayerRecord
    compression: str
    blob: Descriptor | None
    kept: bool
    level: int | None = None


def save_archive(
    handle: StoreHandle,
    images: Wanted,
    target: Target,
    *,
    docker: bool,
    compression: str | None = None,
    level: int | None = None,
    check: Callable[[], None] | None = None,
) -> list[SavedImage]:
    """Write an archive.

    Args:
        handle: the store.
        images: what is saved; a layer that several have is written once.
        target: where to.
        docker: whether it is a docker archive.
        compression: of the layers; None keeps what was kept, and compresses nothing. A docker archive never does.
        level: of the compression; with one all layers are compressed anew.
        check: polled once per piece.

    Raises:
        IntegrityError: a layer is damaged.
        OSError: what the target raises.
    """
    written: dict[str, Descriptor] = {}
    directories = MemberDirectories()

    def put(layer: _Layer) -> Descriptor:
        return _put_layer(handle, layer, target, written, directories, check)

    def put_document(digest: Digest, raw: bytes) -> None:
        name = blob_path(digest)
        if name not in written:
            written[name] = Descriptor("", digest, len(raw))
            target.write(directories.before(name))
            _put_member(target, name, raw)

    how = ("none", None) if docker else (compression, level)
    saved = [
        _save_image(handle, record, names, how, put, put_document, in_oci_form=not docker) for record, names in images
    ]
    _put_member(target, "index.json", encode_index([entry for _, entries, _ in saved for entry in entries]))
    if docker:
        _put_member(target, "manifest.json", json.dumps([listed for _, _, listed in saved]).encode())
    _put_member(target, "oci-layout", LAYOUT)
    target.write(END)
    return [image for image, _, _ in saved]


def save_layout(
    handle: StoreHandle,
    images: Wanted,
    directory: str | os.PathLike[str],
    *,
    compression: str | None = None,
    level: int | None = None,
    in_oci_form: bool = True,
    check: Callable[[], None] | None = None,
) -> list[SavedImage]:
    """Write images into the directory of an OCI layout, made if it is not there; names there move to the new images.

    Args:
        handle: the store.
        images: what is saved.
        directory: the layout.
        compression: of the layers; None keeps what was kept, and compresses nothing.
        level: of the compression; with one all layers are compressed anew.
        in_oci_form: whether manifests of docker become such of OCI.
        check: polled once per piece.

    Raises:
        FormatError: the directory has something else in it, or a damaged index.
        LayerfsError: it cannot be written.

    Atomicity: ``index.json`` is replaced at the end, at once; a crash before leaves blobs that nothing names.
    """
    try:
        layout = LayoutDirectory(directory, sync=handle.sync)
        return _save_layout(handle, images, layout, (compression, level), check, in_oci_form=in_oci_form)
    except OSError as error:
        where = error.filename or os.path.abspath(directory)
        raise LayerfsError(f"cannot write {os.fsdecode(where)}: {error.strerror}") from error


def _save_layout(
    handle: StoreHandle,
    images: Wanted,
    layout: LayoutDirectory,
    how: _How,
    check: Callable[[], None] | None,
    *,
    in_oci_form: bool,
) -> list[SavedImage]:
    layout.begin()

    def put(layer: _Layer) -> Descriptor:
        if layer.blob is not None and layout.has(layer.blob):
            return layer.blob
        return _write_blob(handle, layout, layer, check)

    def put_document(digest: Digest, raw: bytes) -> None:
        layout.put(digest, [raw])

    saved = [
        _save_image(handle, record, names, how, put, put_document, in_oci_form=in_oci_form) for record, names in images
    ]
    new = [entry for _, entries, _ in saved for entry in entries]
    names = {name_of(entry) for entry in new} - {None}
    layout.change_index(
        lambda present: [*(entry for entry in present if entry not in new and name_of(entry) not in names), *new]
    )
    return [image for image, _, _ in saved]


def _save_image(
    handle: StoreHandle,
    record: ImageRecord,
    names: Sequence[str],
    how: _How,
    put: Callable[[_Layer], Descriptor],
    put_document: Callable[[Digest, bytes], None],
    *,
    in_oci_form: bool,
) -> tuple[SavedImage, list[dict[str, Any]], dict[str, Any]]:
    """Write one image; return it with its entries for ``index.json`` and ``manifest.json``."""
    config = ImageConfig.parse(handle.read_blob(record.digest), algorithm=record.digest.algorithm)
    raw = handle.read_blob(record.manifest)
    old = Manifest.parse(raw, algorithm=record.manifest.algorithm)
    layers = image_layers(handle, record)
    descriptors = list(old.layers) if len(old.layers) == len(layers) else [None] * len(layers)
    plans = [_plan(handle, *pair, *how) for pair in zip(layers, descriptors, strict=True)]
    blobs = [put(plan) for plan in plans]
    put_document(config.digest, config.raw)
    if [(blob.digest, blob.size) for blob in blobs] == [(blob.digest, blob.size) for blob in old.layers]:
        digest, media_type = old.digest, old.media_type
    else:
        digest, raw = make_manifest(config, blobs, old.annotations)
        media_type = Manifest.parse(raw).media_type
    if media_type == DOCKER_MANIFEST and in_oci_form:
        # What reads OCI images alone knows no other.
        raw, media_type = as_oci(raw), OCI_MANIFEST
        digest = Digest.of(raw, digest.algorithm)
    put_document(digest, raw)
    entry: dict[str, Any] = {"mediaType": media_type, "digest": str(digest), "size": len(raw)}
    platform = {"architecture": config.platform.architecture, "os": config.platform.os}
    if config.platform.variant:
        platform["variant"] = config.platform.variant
    entry["platform"] = platform
    entries = [entry | {"annotations": {IMAGE_NAME: name, REF_NAME: name}} for name in names] or [entry]
    listed = {
        "Config": blob_path(config.digest),
        "RepoTags": list(names) or None,
        "Layers": [blob_path(blob.digest) for blob in blobs],
    }
    return SavedImage(config.digest, digest, tuple(names)), entries, listed


def _plan(
    handle: StoreHandle, layer: LayerRecord, blob: Descriptor | None, compression: str | None, level: int | None
) -> _Layer:
    """Decide how a layer goes out."""
    plain = Descriptor(layer_type("none"), layer.diff_id, layer.tar_size)
    if blob is not None and blob.digest == layer.diff_id and compression in (None, "none"):
        return _Layer(layer, "none", blob, kept=False)
    if blob is not None and blob.digest != layer.diff_id and has_blob(handle, blob):
        kept = layer_compression(blob.media_type)
        if level is None and compression in (None, kept):
            return _Layer(layer, kept, blob, kept=True)
    if compression in (None, "none"):
        return _Layer(layer, "none", plain, kept=False)
    return _Layer(layer, compression, None, kept=False, level=level)


def _put_layer(
    handle: StoreHandle,
    layer: _Layer,
    target: Target,
    written: dict[str, Descriptor],
    directories: MemberDirectories,
    check: Callable[[], None] | None,
) -> Descriptor:
    """Write a layer as a member of an archive."""
    known = f"{layer.record.diff_id} {layer.compression}"
    if layer.blob is None and known in written:
        return written[known]
    blob = layer.blob
    if blob is None and not target.patchable:
        # The size and digest stand before the bytes, and the bytes cannot wait anywhere.
        blob = _measure(handle, layer, check)
    name = blob_path(blob.digest if blob is not None else layer.record.diff_id)
    if blob is not None and name in written:
        return blob
    target.write(directories.before(name))
    start = target.position
    target.write(member_header(name, blob.size if blob is not None else 0))
    hasher, size = new_hash("sha256" if blob is None else blob.digest.algorithm), 0
    with closing(prefetch(_digested(_bytes(handle, layer, check), hasher), depth=_AHEAD)) as pieces:
        for piece, digested in pieces:
            size = digested
            target.write(piece)
    target.write(padding(size))
    found = Digest(blob.digest.algorithm if blob is not None else "sha256", hasher.hexdigest())
    if blob is None:
        blob = Descriptor(layer_type(layer.compression), found, size)
        # Names of digests are equally long, and a size up to 8 GiB fits its field: the header only changes.
        header = member_header(blob_path(found), size)
        if len(header) != len(member_header(name, 0)):
            raise FormatError(f"compressed layer of {size} bytes is too large to be written in one pass")
        target.patch(start, header)
        written[known] = blob
    elif (found, size) != (blob.digest, blob.size):
        what = "kept blob" if layer.kept else "layer in the store"
        raise DigestMismatch(what, expected=str(blob.digest), actual=str(found), size=size)
    written[blob_path(blob.digest)] = blob
    return blob


def _write_blob(
    handle: StoreHandle, layout: LayoutDirectory, layer: _Layer, check: Callable[[], None] | None
) -> Descriptor:
    """Write a layer as a file of a layout."""
    algorithm = layer.blob.digest.algorithm if layer.blob is not None else "sha256"
    hasher, size = new_hash(algorithm), 0
    with layout.staged(algorithm) as staged:
        with closing(prefetch(_digested(_bytes(handle, layer, check), hasher), depth=_AHEAD)) as pieces:
            for piece, digested in pieces:
                size = digested
                staged.write(piece)
        found = Digest(algorithm, hasher.hexdigest())
        blob = layer.blob or Descriptor(layer_type(layer.compression), found, size)
        if (found, size) != (blob.digest, blob.size):
            what = "kept blob" if layer.kept else "layer in the store"
            raise DigestMismatch(what, expected=str(blob.digest), actual=str(found), size=size)
        staged.publish(found.hex, sync=layout.sync)
    return blob


def _measure(handle: StoreHandle, layer: _Layer, check: Callable[[], None] | None) -> Descriptor:
    """Compress a layer for its digest and size alone."""
    hasher, size = new_hash("sha256"), 0
    for _, digested in _digested(_bytes(handle, layer, check), hasher):
        size = digested
    return Descriptor(layer_type(layer.compression), Digest("sha256", hasher.hexdigest()), size)


def _bytes(handle: StoreHandle, layer: _Layer, check: Callable[[], None] | None) -> Iterator[bytes]:
    """Yield a layer as it goes out."""
    if layer.kept:
        assert layer.blob is not None
        with open(handle.layout.blob(layer.blob.digest), "rb", buffering=0) as file:
            while data := file.read(_READ):
                if check is not None:
                    check()
                yield data
        return
    pieces = read_layer(handle, layer.record, check=check)
    if layer.compression == "none":
        yield from pieces
        return
    stream = Compressor(layer.compression, layer.level)
    hasher = new_hash(layer.record.diff_id.algorithm)
    for piece in pieces:
        hasher.update(piece)
        if data := stream.compress(piece):
            yield data
    actual = Digest(layer.record.diff_id.algorithm, hasher.hexdigest())
    if actual != layer.record.diff_id:
        raise DigestMismatch(
            "layer in the store", expected=str(layer.record.diff_id), actual=str(actual), size=layer.record.tar_size
        )
    yield stream.flush()


def _digested(pieces: Iterable[bytes], hasher: Any) -> Iterator[tuple[bytes, int]]:
    """Yield pieces with the bytes so far, digested on the way: in the thread that reads them."""
    size = 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        yield piece, size


def _put_member(target: Target, name: str, raw: bytes) -> None:
    target.write(member_header(name, len(raw)) + raw + padding(len(raw)))
