"""How much the store takes, what is shared, and what sharing saves."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from layerfs.formats.digest import Digest
from layerfs.linux.disk_use import files_disk, tree_disk
from layerfs.store.handle import StoreHandle
from layerfs.store.image import image_layers, list_images
from layerfs.store.layer import LayerRecord, list_layers
from layerfs.store.snapshot import list_snapshots

__all__ = ["ImageUsage", "LayerUsage", "Usage", "measure", "shared_bytes"]


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """One layer: ``size`` of its tar, ``disk`` bytes allocated, ``borrowed`` bytes that lie elsewhere, ``images``."""

    diff_id: Digest
    size: int
    disk: int
    borrowed: int
    images: int


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """One image: ``size`` of its layer tars, how much is ``shared`` with other images or ``unique``, and its layers."""

    id: Digest
    size: int
    shared: int
    unique: int
    containers: int
    layers: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole store.

    Attributes:
        layers: per layer.
        images: per image.
        containers: bytes allocated per container, by ID.
        saved_by_layers: bytes not stored because several images have the same layer.
        saved_by_files: bytes not stored because several layers have the same file.
        trees: bytes allocated for merged trees.
        unpacked: bytes allocated for layers that were unpacked to directories; they are made again when needed.
        partial: bytes allocated for what interrupted pulls received; the next pull of the image goes on from there.
        total: bytes allocated in all: layers, trees, unpacked and partial layers, containers, documents.
    """

    layers: tuple[LayerUsage, ...]
    images: tuple[ImageUsage, ...]
    containers: dict[str, int]
    saved_by_layers: int
    saved_by_files: int
    trees: int
    unpacked: int
    partial: int
    total: int


def shared_bytes(handle: StoreHandle, layer: LayerRecord) -> int:
    """Return how many bytes of a layer lie in other layers, or elsewhere in itself."""
    row = handle.database.connection.execute("SELECT sum(size) FROM extent WHERE layer = ?", (layer.id,)).fetchone()
    return row[0] or 0


def measure(handle: StoreHandle) -> Usage:
    """Measure the store.

    Blocking: one stat per file of the store, and a walk of every container's writable layer and of what layers were
        unpacked to.
    """
    connection = handle.database.connection
    users: dict[int, int] = dict(
        connection.execute("SELECT layer, count(DISTINCT image) FROM image_layer GROUP BY layer").fetchall()
    )
    borrowed: dict[int, int] = dict(connection.execute("SELECT layer, sum(size) FROM extent GROUP BY layer").fetchall())
    layers = []
    for layer in list_layers(handle):
        disk = files_disk((handle.layout.layer_tar(layer.diff_id), handle.layout.layer_tree(layer.diff_id)))
        count = users.get(layer.id, 0)
        layers.append(LayerUsage(layer.diff_id, layer.tar_size, disk, borrowed.get(layer.id, 0), count))
    snapshots = list_snapshots(handle)
    images = []
    for image in list_images(handle):
        own = image_layers(handle, image)
        shared = sum(layer.tar_size for layer in own if users.get(layer.id, 0) > 1)
        size = sum(layer.tar_size for layer in own)
        count = sum(snapshot.image == image.digest for snapshot in snapshots)
        diff_ids = tuple(layer.diff_id for layer in own)
        images.append(ImageUsage(image.digest, size, shared, size - shared, count, diff_ids))
    containers = {}
    for snapshot in snapshots:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            containers[snapshot.id] = tree_disk(handle.layout.snapshot(snapshot.id))
    trees = _files_disk(os.path.join(handle.layout.root, "images"))
    other = _files_disk(os.path.join(handle.layout.root, "blobs"))
    places = (os.path.join(handle.layout.root, "unpacked", algorithm) for algorithm in ("sha256", "sha512"))
    unpacked = sum(map(tree_disk, places))
    partial = _files_disk(os.path.join(handle.layout.root, "partial"))
    return Usage(
        tuple(layers),
        tuple(images),
        containers,
        saved_by_layers=sum(layer.size * (layer.images - 1) for layer in layers if layer.images > 1),
        saved_by_files=sum(layer.borrowed for layer in layers),
        trees=trees,
        unpacked=unpacked,
        partial=partial,
        total=sum(layer.disk for layer in layers) + trees + unpacked + partial + other + sum(containers.values()),
    )


def _files_disk(directory: str) -> int:
    """Return the bytes allocated for the files below a directory."""
    return files_disk(os.path.join(top, name) for top, _, names in os.walk(directory) for name in names)
