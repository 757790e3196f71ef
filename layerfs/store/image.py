"""Images in the store: a config, the manifest it came with, its layers' merged tree, and its names."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from layerfs.errors import Conflict, FormatError, IntegrityError, InvalidReference, NotFound
from layerfs.formats.digest import Digest
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.oci import Manifest
from layerfs.formats.reference import Reference
from layerfs.formats.tree import Node
from layerfs.linux.durable import fsync_directory, write_document
from layerfs.linux.lock import FileLock
from layerfs.store.derive import TREE_LATER, LayerKeys, chain_digest, merge_layers
from layerfs.store.handle import StoreHandle
from layerfs.store.ingest import Ingest, IngestedLayer
from layerfs.store.layer import LayerRecord, get_layer, open_tree
from layerfs.store.nodes import read_nodes

__all__ = [
    "ImageRecord",
    "NewImage",
    "commit_images",
    "find_image",
    "find_name",
    "find_record",
    "image_layers",
    "image_names",
    "list_images",
    "merged_tree",
]

_log = logging.getLogger(__name__)

#: Hex digits that a shortened ID needs at least; below, one typed by accident would too often find something.
MIN_PREFIX = 4

_COLUMNS = "id, digest, manifest, chain_id, loaded"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of the image table; see :mod:`layerfs.store.schema`."""

    id: int
    digest: Digest
    manifest: Digest
    chain_id: Digest
    loaded: int


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
    """

    config: tuple[Digest, bytes]
    manifest: tuple[Digest, bytes]
    layers: Sequence[IngestedLayer]
    names: Sequence[Reference]
    tree_later: bool = False


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
    with FileLock(handle.layout.trees_lock, shared=True):
        chains = [_write_files(ingest, image) for image in images]
        ingest.flush()
        with handle.database.transaction() as connection:
            return [_insert(connection, image, chain) for image, chain in zip(images, chains, strict=True)]


def _write_files(ingest: Ingest, image: NewImage) -> Digest:
    """Write an image's documents and merged tree; return its chainID."""
    handle = ingest.handle
    chain = chain_digest([layer.diff_id for layer in image.layers])
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
    if ingest.blobs is not None:
        digest, raw = image.manifest
        ingest.blobs.publish(Manifest.parse(raw, algorithm=digest.algorithm).layers)
    return chain


def _merge(ingest: Ingest, layers: Sequence[IngestedLayer]) -> bytes:
    """Return the merged tree of a chain of layers, starting from that of an image with the first of them, if any."""
    handle = ingest.handle
    start: Node | None = None
    below = 0
    for count in range(len(layers) - 1, 0, -1):
        chain = chain_digest([layer.diff_id for layer in layers[:count]])
        row = handle.database.connection.execute("SELECT 1 FROM image WHERE chain_id = ?", (str(chain),)).fetchone()
        path = handle.layout.merged_tree(chain)
        if row is not None and _has_merged_tree(path):
            start, below = read_nodes(open_tree(path), ingest.keys.get), count
            break
    pairs = [
        (layer.root if layer.root is not None else open_tree(handle.layout.layer_tree(layer.diff_id)), layer.key)
        for layer in layers[below:]
    ]
    return merge_layers(pairs, ingest.keys.get, start=start, below=[layer.key for layer in layers[:below]])


def _insert(connection: sqlite3.Connection, image: NewImage, chain: Digest) -> ImageRecord:
    connection.execute(
        "INSERT INTO image (digest, manifest, chain_id, loaded) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET manifest = excluded.manifest",
        (str(image.config[0]), str(image.manifest[0]), str(chain), time.time_ns()),
    )
    row = connection.execute(f"SELECT {_COLUMNS} FROM image WHERE digest = ?", (str(image.config[0]),)).fetchone()
    record = _record(row)
    if not connection.execute("SELECT 1 FROM image_layer WHERE image = ?", (record.id,)).fetchone():
        connection.executemany(
            "INSERT INTO image_layer SELECT ?, ?, id FROM layer WHERE diff_id = ?",
            ((record.id, position, str(layer.diff_id)) for position, layer in enumerate(image.layers)),
        )
    (known,) = connection.execute("SELECT count(*) FROM image_layer WHERE image = ?", (record.id,)).fetchone()
    if known != len(image.layers):
        raise IntegrityError(f"{len(image.layers) - known} layers of image {record.digest.short} are not in the store")
    for name in image.names:
        row = connection.execute(
            "SELECT digest FROM name JOIN image ON image.id = name.image WHERE name = ? AND image.id != ?",
            (str(name), record.id),
        ).fetchone()
        if row is not None:
            _log.warning(
                "%s now means image %s; until now it was %s", name, record.digest.short, Digest.parse(row[0]).short
            )
        set_name(connection, name, record.id)
    return record


def set_name(connection: sqlite3.Connection, name: Reference, image: int) -> None:
    """Let a name mean an image, inside the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO name VALUES (?, ?)", (str(name), image))


def list_images(handle: StoreHandle) -> list[ImageRecord]:
    """Return all images, newest first."""
    rows = handle.database.connection.execute(f"SELECT {_COLUMNS} FROM image ORDER BY loaded DESC, id DESC")
    return [_record(row) for row in rows]


def find_record(handle: StoreHandle, digest: Digest) -> ImageRecord | None:
    """Return the image of exactly this ID, or None."""
    row = handle.database.connection.execute(
        f"SELECT {_COLUMNS} FROM image WHERE digest = ?", (str(digest),)
    ).fetchone()
    return _record(row) if row else None


def image_names(handle: StoreHandle, image: ImageRecord) -> list[str]:
    """Return the names of an image, sorted."""
    rows = handle.database.connection.execute("SELECT name FROM name WHERE image = ? ORDER BY name", (image.id,))
    return [row[0] for row in rows]


def image_layers(handle: StoreHandle, image: ImageRecord) -> list[LayerRecord]:
    """Return the layers of an image, bottom first."""
    rows = handle.database.connection.execute(
        "SELECT layer FROM image_layer WHERE image = ? ORDER BY position", (image.id,)
    )
    return [get_layer(handle, row[0]) for row in rows.fetchall()]


def find_image(handle: StoreHandle, text: str) -> ImageRecord:
    """Return the image that a user means by a name, an ID, or the unique beginning of an ID.

    A name wins over an ID, as with docker: who names an image ``cafe`` means it.

    Raises:
        NotFound: nothing matches.
        Conflict: several IDs begin so; the message lists them.
        InvalidReference: the text is neither a name nor an ID.
    """
    connection = handle.database.connection
    wanted = text.strip()
    error: InvalidReference | None = None
    # Images of archives that give only a tag live below localhost/, and are found without it, as with podman.
    for familiar in (wanted, f"localhost/{wanted}"):
        try:
            record = _by_reference(connection, Reference.parse(familiar))
        except InvalidReference as problem:
            error = error or problem
            continue
        if record is not None:
            return record
    algorithm, _, digits = wanted.rpartition(":")
    digits = digits.lower()
    if digits and not digits.strip("0123456789abcdef") and algorithm in ("", "sha256", "sha512"):
        if len(digits) < MIN_PREFIX:
            raise NotFound("image", text, hint=f"Give at least {MIN_PREFIX} digits of an ID.")
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM image WHERE digest LIKE ? OR digest LIKE ?",
            tuple(f"{name}:{digits}%" for name in ("sha256", "sha512")),
        ).fetchall()
        if len(rows) == 1:
            return _record(rows[0])
        if rows:
            listed = ", ".join(sorted(str(row[1]).split(":")[1][:12] for row in rows))
            raise Conflict(f"{text} is the beginning of {len(rows)} image IDs: {listed}", reason="ambiguous")
    elif error is not None:
        raise error
    raise NotFound("image", text, hint="List what there is with: layerfs images")


def find_name(handle: StoreHandle, name: Reference) -> ImageRecord | None:
    """Return the image that a canonical name means, or None."""
    return _by_reference(handle.database.connection, name)


def merged_tree(handle: StoreHandle, image: ImageRecord) -> Tree:
    """Return the image's merged tree, made again if it is missing or damaged.

    Raises:
        IntegrityError: so is one of its layers.
    """
    path = handle.layout.merged_tree(image.chain_id)
    try:
        return open_tree(path)
    except (FileNotFoundError, FormatError):
        keys = LayerKeys(handle)
        with FileLock(handle.layout.trees_lock, shared=True):
            try:
                pairs = [
                    (open_tree(handle.layout.layer_tree(layer.diff_id)), keys.get(layer.diff_id))
                    for layer in image_layers(handle, image)
                ]
            except (FileNotFoundError, FormatError) as error:
                raise IntegrityError(f"a layer is damaged: {error}", hint="Load the image again.") from error
            write_document(path, merge_layers(pairs, keys.get), sync=handle.sync)
            return open_tree(path)


def _has_merged_tree(path: str) -> bool:
    if not os.path.exists(path):
        return False
    try:
        open_tree(path)
    except FormatError:
        return False
    return True


def _by_reference(connection: sqlite3.Connection, reference: Reference) -> ImageRecord | None:
    """Look a name up; with a digest, that of the manifest or the config must be the image's."""
    if reference.digest is not None:
        digest = str(reference.digest)
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM image WHERE manifest = ? OR digest = ? ORDER BY id DESC", (digest, digest)
        ).fetchone()
    else:
        row = connection.execute(
            "SELECT image.id, digest, manifest, chain_id, loaded FROM name JOIN image ON image.id = name.image"
            " WHERE name.name = ?",
            (str(reference.with_default_tag()),),
        ).fetchone()
    return _record(row) if row else None


def _record(row: tuple[int, str, str, str, int]) -> ImageRecord:
    return ImageRecord(row[0], Digest.parse(row[1]), Digest.parse(row[2]), Digest.parse(row[3]), row[4])
