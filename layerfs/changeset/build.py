"""New images from layers of the store and layers made here: what commit, import, squash and rebase have in common.

A layer that is made here goes the way of every other one: through :class:`layerfs.store.ingest.Ingest`, digested,
durable, sharing its files with the store. An image becomes visible when all of it is there.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from layerfs.errors import Conflict, FormatError, LayerfsError
from layerfs.formats.amend import layer_type, make_manifest
from layerfs.formats.compress import Compressor
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.merge import walk
from layerfs.formats.oci import Descriptor, ImageConfig
from layerfs.formats.reference import Reference
from layerfs.formats.tree import Node
from layerfs.store.derive import aligned
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, find_name, image_layers
from layerfs.store.ingest import Ingest, IngestedLayer, Pending
from layerfs.store.kept_blob import manifest_blobs
from layerfs.store.layer import open_layer_tree
from layerfs.store.new_image import NewImage, commit_images
from layerfs.store.nodes import read_nodes

__all__ = [
    "BuiltLayer",
    "base_layers",
    "building",
    "history_of",
    "ingest_layer",
    "newest_time",
    "not_empty",
    "save_image",
    "tree_of",
]


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """A layer of a new image, and what its manifest says of it."""

    layer: IngestedLayer
    descriptor: Descriptor


@contextmanager
def building(handle: StoreHandle, *, check: Callable[[], None] | None = None) -> Iterator[Ingest]:
    """Run an ingest; when it fails, what it brought in is removed."""
    try:
        with Ingest(handle, keep_blobs=True, check=check) as ingest:
            yield ingest
    except BaseException:
        from layerfs.store.gc import collect  # noqa: PLC0415 - what goes well starts sooner

        with contextlib.suppress(OSError, LayerfsError):
            collect(handle)
        raise


def ingest_layer(ingest: Ingest, pieces: Iterable[bytes], compression: str = "none") -> BuiltLayer:
    """Bring a tar in as a layer, and keep it compressed too, if it is to be.

    Raises:
        FormatError: it is no tar that a layer can be.
        OSError: ENOSPC, EIO, and what ``pieces`` raises.
    """
    assert ingest.blobs is not None
    stream = Compressor(compression)
    pending = ingest.begin_layer(None)
    assert isinstance(pending, Pending)
    member = f"layer {pending.directory}"
    keep = ingest.blobs.begin(member) if compression != "none" else None
    hasher, blob_hasher, blob_size = new_hash("sha256"), new_hash("sha256"), 0
    try:
        for piece in aligned(pieces):
            hasher.update(piece)
            pending.writer.write(piece)
            if keep is not None and (data := stream.compress(piece)):
                blob_hasher.update(data)
                blob_size += len(data)
                keep(data)
        if keep is not None:
            data = stream.flush()
            blob_hasher.update(data)
            blob_size += len(data)
            keep(data)
    except BaseException:
        ingest.abandon(pending)
        raise
    diff_id = Digest("sha256", hasher.hexdigest())
    size = pending.writer.tar_size
    blob, blob_size = (diff_id, size) if keep is None else (Digest("sha256", blob_hasher.hexdigest()), blob_size)
    layer = ingest.finish_layer(pending, diff_id, (blob, blob_size))
    ingest.blobs.end(member, blob)
    return BuiltLayer(layer, Descriptor(layer_type(compression), blob, blob_size))


def base_layers(ingest: Ingest, image: ImageRecord) -> list[BuiltLayer]:
    """Return the layers of an image of the store, for a new one.

    Raises:
        Conflict: one was removed just now.
        FormatError: its manifest and its layers do not fit together.
    """
    blobs = manifest_blobs(ingest.handle, image.manifest)
    records = image_layers(ingest.handle, image)
    if blobs is None or len(blobs) != len(records):
        raise FormatError(f"manifest {image.manifest} does not list the {len(records)} layers of its image")
    layers = ingest.find_layers([record.diff_id for record in records])
    found = []
    for record, blob in zip(records, blobs, strict=True):
        layer = layers.get(record.diff_id)
        if layer is None:
            raise Conflict(
                f"layer {record.diff_id.short} is damaged or was just removed", reason="in-use",
                hint="Run: layerfs check",
            )  # fmt: skip
        found.append(BuiltLayer(layer, blob))
    return found


def save_image(
    ingest: Ingest,
    config: ImageConfig,
    layers: Sequence[BuiltLayer],
    name: Reference | None,
    *,
    force: bool = False,
    tree_later: bool = False,
) -> ImageRecord:
    """Make the image visible.

    Args:
        ingest: which has the layers.
        config: of the image.
        layers: bottom first.
        name: what it is to be called; None for no name.
        force: let a name mean this image that means another one.
        tree_later: as for :class:`layerfs.store.image.NewImage`.

    Raises:
        Conflict: the name is taken.
        FormatError: the layers do not fit together.
    """
    if name is not None and not force:
        taken = find_name(ingest.handle, name)
        if taken is not None and taken.digest != config.digest:
            raise Conflict(
                f"{name} is the name of image {taken.digest.short}", reason="exists",
                hint="Choose another name, or use --force to let it mean the new image.",
            )  # fmt: skip
    manifest = make_manifest(config, [layer.descriptor for layer in layers])
    names = [name] if name is not None else []
    new = NewImage((config.digest, config.raw), manifest, [layer.layer for layer in layers], names, tree_later)
    return commit_images(ingest, [new])[0]


def not_empty(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pass a tar on; one without a byte is what a broken pipe leaves.

    Raises:
        FormatError: it is that.
    """
    found = False
    for piece in pieces:
        found = found or bool(piece)
        yield piece
    if not found:
        raise FormatError("the archive is empty")


def history_of(config: ImageConfig, layers: int | None = None) -> list[dict[str, Any]]:
    """Return the history of a config as in the document, or that part of it which made its first so many layers."""
    steps: list[dict[str, Any]] = json.loads(config.raw).get("history") or []
    if layers is None:
        return steps
    made = 0
    for position, step in enumerate(steps):
        if made == layers:
            return steps[:position]
        made += not step.get("empty_layer")
    return steps


def tree_of(handle: StoreHandle, layer: IngestedLayer, keys: Callable[[Digest], object]) -> Node:
    """Return the tree of a layer that was just ingested: from the disk, if the store had it before."""
    if layer.root is not None:
        return layer.root
    return read_nodes(open_layer_tree(handle, layer.diff_id), keys)


def newest_time(handle: StoreHandle, layer: IngestedLayer, latest: int | None) -> int:
    """Return when a layer was made: its newest time, in nanoseconds, not after now or after ``latest`` (seconds).

    So the same change gives the same image on any day.
    """
    limit = time.time_ns() if latest is None else latest * 1_000_000_000
    root = tree_of(handle, layer, lambda _: None)
    newest = max((node.mtime * 1_000_000_000 + node.mtime_ns for node in walk(root)), default=0)
    return min(newest, limit)
