"""Making images of layers that are in the store: documents and merged tree first, then the rows that show them."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from layerfs.errors import FormatError, IntegrityError
from layerfs.formats.digest import Digest, chain_id
from layerfs.formats.oci import Manifest
from layerfs.formats.reference import Reference
from layerfs.formats.tree import Node
from layerfs.linux.durable import fsync_directory, write_document
from layerfs.store.carry import MANY
from layerfs.store.database import stored_digest
from layerfs.store.derive import TREE_LATER, merge_layers
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, find_record, set_name
from layerfs.store.ingest import Ingest, IngestedLayer
from layerfs.store.layer import open_tree
from layerfs.store.nodes import read_nodes

__all__ = ["NewImage", "commit_images"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewImage:
    """What an image is made of.

    Attributes:
        config: digest and bytes of the image config; the digest is the image ID.
        manifest: digest and bytes of the manifest.
        layers: bottom first, as the config's diffIDs.
        names: names that shall mean this image from now on.
        tree_later: whether its merged tree is made when it is first needed: for who waits for the image, and knows that
            its layers fit together.
        origin: the repository that it was pulled from, the digest by which that has it, and whether that digest was
            asked for, and is a name of the image then.
        index: digest and bytes of the index, if that digest is one's.
    """

    config: tuple[Digest, bytes]
    manifest: tuple[Digest, bytes]
    layers: Sequence[IngestedLayer]
    names: Sequence[Reference]
    tree_later: bool = False
    origin: tuple[str, Digest, bool] | None = None
    index: tuple[Digest, bytes] | None = None


def commit_images(ingest: Ingest, images: Sequence[NewImage]) -> list[ImageRecord]:
    """Make images of layers that a load has brought in or found.

    Raises:
        FormatError: the layers of one do not fit together.
        OSError: ENOSPC, EIO.

    Atomicity: documents, layers and merged trees are durable before the rows that make the images visible, all at once.
    """
    handle = ingest.handle
    # Until the rows are there, nothing but this lock tells a garbage collection what the new files are for, or that
    # the trees being read here must not change their donors.
    with handle.trees_kept():
        chains = [_write_files(ingest, image) for image in images]
        ingest.flush()
        with handle.database.transaction() as connection:
            return [_insert(handle, connection, image, chain) for image, chain in zip(images, chains, strict=True)]


def _write_files(ingest: Ingest, image: NewImage) -> Digest:
    """Write an image's documents and merged tree; return its chainID."""
    handle = ingest.handle
    chain = chain_id([layer.diff_id for layer in image.layers])
    path = handle.layout.merged_tree(chain)
    # A tree of no image may be out of date: what moved since it was made was not changed in it.
    row = handle.database.connection.execute("SELECT 1 FROM image WHERE chain_id = ?", (str(chain),)).fetchone()
    if row is not None and _has_merged_tree(path):
        # Another load may have written it and died before its name was durable.
        fsync_directory(os.path.dirname(path), sync=handle.sync)
    else:
        merged = TREE_LATER if image.tree_later else _merge(ingest, image.layers)
        write_document(path, merged, sync=handle.sync and not image.tree_later)
    handle.write_blob(*image.config)
    handle.write_blob(*image.manifest)
    if image.index is not None:
        handle.write_blob(*image.index)
    if ingest.blobs is not None:
        digest, raw = image.manifest
        ingest.blobs.publish(Manifest.parse(raw, algorithm=digest.algorithm).layers)
    return chain


def _merge(ingest: Ingest, layers: Sequence[IngestedLayer]) -> bytes:
    """Return the merged tree of a chain of layers, starting from that of an image with the first of them, if any."""
    handle = ingest.handle
    start: Node | None = None
    below = 0
    chains = list(accumulate((layer.diff_id for layer in layers), lambda chain, diff_id: chain_id((chain, diff_id))))
    for count in range(len(layers) - 1, 0, -1):
        chain = chains[count - 1]
        row = handle.database.connection.execute("SELECT 1 FROM image WHERE chain_id = ?", (str(chain),)).fetchone()
        path = handle.layout.merged_tree(chain)
        if row is not None and _has_merged_tree(path):
            start = read_nodes(open_tree(path), ingest.keys.get, [layer.key for layer in layers[:count]])
            below = count
            break
    pairs = [
        (layer.root if layer.root is not None else open_tree(handle.layout.layer_tree(layer.diff_id)), layer.key)
        for layer in layers[below:]
    ]
    if len(layers) > MANY:
        ingest.flush()  # their bytes may be looked at, where the store keeps them
    return merge_layers(pairs, ingest.keys, start=start, below=[layer.key for layer in layers[:below]])


def _insert(handle: StoreHandle, connection: sqlite3.Connection, image: NewImage, chain: Digest) -> ImageRecord:
    """Write the rows of an image, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO image (digest, manifest, chain_id, loaded) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET manifest = excluded.manifest",
        (str(image.config[0]), str(image.manifest[0]), str(chain), time.time_ns()),
    )
    record = find_record(handle, image.config[0])
    assert record is not None, "the row above is there"
    if not connection.execute("SELECT 1 FROM image_layer WHERE image = ?", (record.id,)).fetchone():
        connection.executemany(
            "INSERT INTO image_layer SELECT ?, ?, id FROM layer WHERE diff_id = ?",
            ((record.id, position, str(layer.diff_id)) for position, layer in enumerate(image.layers)),
        )
    (known,) = connection.execute("SELECT count(*) FROM image_layer WHERE image = ?", (record.id,)).fetchone()
    if known != len(image.layers):
        raise IntegrityError(f"{len(image.layers) - known} layers of image {record.digest.short} are not in the store")
    if image.origin is not None:
        repository, digest, asked = image.origin
        connection.execute(
            "INSERT INTO origin VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET asked = max(asked, excluded.asked)",
            (record.id, repository, str(digest), str(image.manifest[0]), asked),
        )
    for name in image.names:
        row = connection.execute(
            "SELECT digest FROM name JOIN image ON image.id = name.image WHERE name = ? AND image.id != ?",
            (str(name), record.id),
        ).fetchone()
        if row is not None:
            _log.warning(
                "%s now means image %s; until now it was %s", name, record.digest.short, stored_digest(row[0]).short
            )
        set_name(connection, name, record.id, image.manifest[0])
    return replace(record, given=tuple(map(str, image.names)))


def _has_merged_tree(path: str) -> bool:
    """Return whether a merged tree is there, and whole: images with more layers begin with it."""
    try:
        return open_tree(path).is_whole()
    except (FileNotFoundError, FormatError):
        return False
