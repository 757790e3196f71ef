"""Reading the whole store again: every layer against its diffID, every tree against what it must be."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layerfs.errors import IntegrityError, LayerfsError, NotFound, StoreError
from layerfs.formats.digest import Digest, chain_id
from layerfs.linux.durable import write_document
from layerfs.linux.lock import FileLock
from layerfs.store.database import stored_digest
from layerfs.store.derive import derive_layer_tree, is_tree_later, merge_stored, restore_record
from layerfs.store.gc import collect
from layerfs.store.handle import StoreHandle
from layerfs.store.image import (
    ImageRecord,
    find_record,
    image_indexes,
    image_layers,
    image_manifests,
    list_images,
)
from layerfs.store.ingest import COLLECTOR
from layerfs.store.kept_blob import manifest_blobs, verify_blob
from layerfs.store.layer import LayerRecord, find_layer, get_layer, is_intact
from layerfs.store.poll import Poll
from layerfs.store.snapshot import Snapshot, list_snapshots

__all__ = ["Problem", "check_store"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: ``layer``, ``tree``, ``image``, ``document`` or ``blob``.
        name: its digest.
        message: what is wrong, one line.
        repaired: whether it was put right.
        hint: what to do about it when it was not.
    """

    kind: str
    name: str
    message: str
    repaired: bool
    hint: str | None = None


def check_store(
    handle: StoreHandle, *, repair: bool = False, check: Callable[[], None] | None = None
) -> Iterator[Problem]:
    """Yield every problem of the store; nothing means that all images are whole.

    What no image uses is not looked at. It goes with ``repair``, and if a collection was interrupted; a kept blob that
    is damaged goes with ``repair``.

    Args:
        handle: the store.
        repair: rebuild what can be made from what is there: trees, and records of files that were only touched. A
            damaged layer needs its image to be loaded again, which replaces just that layer.
        check: polled once per piece read; what it raises ends the work.

    Raises:
        OSError: of this process, not of the store's files: EMFILE, ENOMEM and the like.

    Blocking: reads every layer once.
    """
    poll = Poll(check)
    found = _check_database(handle, repair=repair)
    yield from found
    unreadable = list(_unreadable_rows(handle))
    yield from unreadable
    if unreadable:
        return  # whatever lists images or layers meets such a row
    # A collection that was interrupted leaves trees and records apart until it is finished. Else looking removes
    # nothing; nor does anything while the database contradicts itself about what is in use.
    row = handle.database.connection.execute("SELECT 1 FROM lease WHERE owner = ?", (COLLECTOR,)).fetchone()
    if (repair or (row is not None and not handle.database.frozen)) and all(problem.repaired for problem in found):
        collect(handle)
    # What no image uses is about to go; half a layer there is what an interrupted removal leaves.
    rows = handle.database.connection.execute("SELECT DISTINCT layer FROM image_layer ORDER BY layer").fetchall()
    damaged = set()
    for (identifier,) in rows:
        with contextlib.suppress(NotFound):  # removed meanwhile
            for problem in _check_layer(handle, get_layer(handle, identifier), repair=repair, check=poll):
                if problem.kind == "layer":
                    damaged.add(problem.name)
                yield problem
    chains = set()
    blobs: set[Digest] = set()
    for image in list_images(handle):
        found = [*_check_documents(handle, image, poll), *_check_blobs(handle, image, blobs, repair=repair, check=poll)]
        if image.chain_id not in chains:
            found += _check_merged(handle, image, damaged, repair=repair, check=poll)
            chains.add(image.chain_id)
        if found and find_record(handle, image.digest) is not None:
            yield from found
    for snapshot in list_snapshots(handle):
        yield from _check_container(handle, snapshot, repair=repair)


def _check_database(handle: StoreHandle, *, repair: bool) -> list[Problem]:
    """Compare tables and indexes; what only an index has wrong is made anew from its table."""

    def said() -> list[str]:
        try:
            rows = handle.database.connection.execute("PRAGMA integrity_check").fetchall()
            return [row[0] for row in rows if row[0] != "ok"]
        except StoreError as error:
            return [str(error)]

    problems = said()
    if not problems:
        return []
    repaired = False
    if repair and not handle.database.frozen:
        with contextlib.suppress(StoreError, sqlite3.IntegrityError):
            with handle.database.transaction() as writing:
                writing.execute("REINDEX")
            repaired = not said()
    hint = "Make the store anew." if repair else "Run: layerfs check --repair"
    return [
        Problem("document", "store.db", text, repaired=repaired, hint=None if repaired else hint) for text in problems
    ]


def _unreadable_rows(handle: StoreHandle) -> Iterator[Problem]:
    """Look for rows whose digests are none, which no list of layers, images or containers can get past."""
    for table, columns in (("layer", "diff_id"), ("image", "digest, manifest, chain_id"), ("snapshot", "manifest")):
        for row in handle.database.connection.execute(f"SELECT {columns} FROM {table}").fetchall():
            for value in row:
                try:
                    stored_digest(value)
                except IntegrityError as error:
                    hint = "Make the store anew."
                    yield Problem("document", "store.db", f"{table}: {error}", repaired=False, hint=hint)


def _check_container(handle: StoreHandle, snapshot: Snapshot, *, repair: bool) -> Iterator[Problem]:
    """Look for the two directories of a container; the one that holds nothing for long is made again."""
    upper, work = handle.layout.upper(snapshot.id), handle.layout.work(snapshot.id)
    missing = [path for path in (upper, work) if not os.path.isdir(path)]
    if not missing or all(other.id != snapshot.id for other in list_snapshots(handle)):
        return  # it was removed meanwhile
    if upper in missing:
        hint = f"What was written in it is lost; remove it with: layerfs rm {snapshot.name}"
        yield Problem("container", snapshot.name, f"{upper} is missing", repaired=False, hint=hint)
        return
    if repair:
        os.mkdir(work, 0o755)
    hint_of_work = None if repair else "Run: layerfs check --repair"
    yield Problem("container", snapshot.name, f"{work} is missing", repaired=repair, hint=hint_of_work)


def _check_layer(handle: StoreHandle, layer: LayerRecord, *, repair: bool, check: Poll) -> Iterator[Problem]:
    name = str(layer.diff_id)
    try:
        image = derive_layer_tree(handle, layer, check=check)
        size = os.stat(handle.layout.layer_tar(layer.diff_id)).st_size
        if size != layer.file_size:
            raise IntegrityError(f"layer file has {size} bytes instead of {layer.file_size}")
    except (LayerfsError, OSError) as error:
        check.pass_on(error)
        current = find_layer(handle, layer.diff_id)
        if current is None:
            return  # removed meanwhile
        if not handle.database.frozen:
            # From now on no load takes it for whole by its size and times: loading its image replaces it.
            with handle.database.transaction() as connection:
                connection.execute("UPDATE layer SET tar_mtime = 0 WHERE id = ?", (layer.id,))
        yield Problem("layer", name, str(error), repaired=False, hint="Load an image that has this layer again.")
        return
    try:
        with open(handle.layout.layer_tree(layer.diff_id), "rb") as file:
            message = None if file.read() == image else "tree.erofs differs from what the layer's tar describes"
    except OSError as error:
        check.pass_on(error)
        message = f"tree.erofs: {error.strerror}"
    if message is None and not is_intact(handle, layer):
        message = "files were touched since the layer was stored; their content is right"
    if message is None:
        return
    hint = None if repair else "Run: layerfs check --repair"
    if repair:
        try:
            with FileLock(handle.layout.layer_lock(layer.diff_id)):
                restore_record(handle, layer, check=check)
        except (LayerfsError, OSError) as error:
            check.pass_on(error)
            repair, hint = False, f"It could not be repaired: {error}"
    yield Problem("tree", name, message, repaired=repair, hint=hint)


def _check_merged(
    handle: StoreHandle, image: ImageRecord, damaged: set[str], *, repair: bool, check: Poll
) -> list[Problem]:
    path = handle.layout.merged_tree(image.chain_id)
    name = str(image.chain_id)
    with handle.trees_kept():
        layers = image_layers(handle, image)
        # Of an image that was removed meanwhile nothing is made again; and what was not needed yet was not made yet.
        if chain_id([layer.diff_id for layer in layers]) != image.chain_id or is_tree_later(path):
            return []
        # The tree may carry what a layer has lost, and is written anew when that is healed.
        if any(str(layer.diff_id) in damaged for layer in layers):
            return []
        try:
            expected = merge_stored(handle, layers)
        except (LayerfsError, OSError) as error:
            check.pass_on(error)
            return [Problem("image", str(image.digest), f"its layers do not merge: {error}", repaired=False)]
        try:
            with open(path, "rb") as file:
                message = None if file.read() == expected else "merged tree differs from what its layers describe"
        except OSError as error:
            check.pass_on(error)
            message = f"merged tree: {error.strerror}"
        if message is None:
            return []
        hint = None if repair else "Run: layerfs check --repair"
        if repair:
            try:
                write_document(path, expected, sync=handle.sync)
            except OSError as error:
                repair, hint = False, f"It could not be repaired: {error.strerror}"
        return [Problem("tree", name, message, repaired=repair, hint=hint)]


def _check_documents(handle: StoreHandle, image: ImageRecord, check: Poll) -> Iterator[Problem]:
    for digest in (image.digest, *image_manifests(handle, image), *image_indexes(handle, image)):
        try:
            handle.read_blob(digest)
        except (LayerfsError, OSError) as error:
            check.pass_on(error)
            hint = f"Load the image {image.digest.short} again."
            yield Problem("document", str(digest), str(error), repaired=False, hint=hint)


def _check_blobs(
    handle: StoreHandle,
    image: ImageRecord,
    seen: set[Digest],
    *,
    repair: bool,
    check: Poll,
) -> Iterator[Problem]:
    """Verify the compressed blobs that are kept for an image; a damaged one is repaired by keeping none."""
    blobs = [blob for manifest in image_manifests(handle, image) for blob in manifest_blobs(handle, manifest) or ()]
    for blob in blobs:
        path = handle.layout.blob(blob.digest)
        if blob.digest in seen or not os.path.exists(path):
            continue
        seen.add(blob.digest)
        try:
            verify_blob(handle, blob.digest, check=check)
        except (LayerfsError, OSError) as error:
            check.pass_on(error)
            if repair:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            hint = None if repair else "Remove it with: layerfs check --repair"
            yield Problem("blob", str(blob.digest), str(error), repaired=repair, hint=hint)
