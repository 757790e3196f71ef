"""Garbage collection: removing what no image, container or running load refers to.

A layer may hold bytes that others borrow. Before it goes, each borrowed range is copied into the hole of one borrower,
the other borrowers' records are turned to that one, and the trees concerned are written anew under the same names.
Mounts and trees that are looked into have the old files open and do not notice; who is just opening them holds off a
collection (:meth:`layerfs.store.handle.StoreHandle.trees_kept`).

So that a crash at any point loses nothing: the bytes are copied and synced, the trees replaced, the borrowers' records
changed, the files removed, the layer forgotten, in this order. Until the records change the old layer is there, and the
new trees are right with or without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from layerfs.errors import FormatError, InvalidReference, LayerfsError
from layerfs.formats.digest import Digest, chain_id
from layerfs.formats.merge import walk
from layerfs.linux.disk_use import files_disk
from layerfs.linux.durable import fsync_directory, write_document
from layerfs.linux.lock import FileLock
from layerfs.linux.safe_path import remove_tree
from layerfs.linux.sparse import copy_range
from layerfs.store.database import stored_digest
from layerfs.store.derive import LayerKeys, encode_layer_tree, encode_merged_tree, is_tree_later
from layerfs.store.handle import StoreHandle
from layerfs.store.ingest import COLLECTOR, sweep
from layerfs.store.kept_blob import manifest_blobs
from layerfs.store.layer import LayerRecord, chain_layers, find_donors, find_layer, get_layer, open_tree
from layerfs.store.nodes import read_nodes

__all__ = ["Reclaimed", "collect"]

_log = logging.getLogger(__name__)

_UNUSED = f"""
SELECT id FROM layer WHERE NOT EXISTS (SELECT 1 FROM image_layer WHERE image_layer.layer = layer.id)
    AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.layer = layer.id AND owner != '{COLLECTOR}')
"""


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What a collection removed: layers, merged trees, documents, and the bytes of disk that they took."""

    layers: tuple[Digest, ...]
    trees: int
    blobs: int
    size: int


@dataclass(frozen=True, slots=True)
class _Move:
    """Bytes that find a new home: ``size`` at ``old`` in the leaving layer are now at ``new`` in the heir."""

    old: int
    size: int
    heir: int
    new: int


def collect(handle: StoreHandle, *, check: Callable[[], None] | None = None) -> Reclaimed:
    """Remove what nothing refers to. Loads that run at the same time keep what they hold.

    Args:
        handle: the store.
        check: polled between the layers; what it raises ends the work, and what is left is there for the next call.

    Raises:
        StoreFull: there is no room to see what others write; nothing is removed then.
        StoreError: the database contradicts itself; nothing is removed then.
        OSError: ENOSPC when borrowed bytes find no room; the layer that lends them then stays.

    Blocking: waits for loads that are just making their images visible.
    """
    handle.database.share()
    handle.database.refuse_contradictions()
    size = sweep(handle)
    lock = FileLock(handle.layout.lock(f"ingest-{COLLECTOR}"))
    if not lock.try_acquire():
        return Reclaimed((), 0, 0, size)
    try:
        removed = []
        # The newest first: what a failed load brought in borrows from older layers, and has not to inherit from them.
        rows = handle.database.connection.execute(f"{_UNUSED} ORDER BY id DESC").fetchall()
        if rows:
            handle.database.refuse_contradictions(borrowed=True)
        for (identifier,) in rows:
            if check is not None:
                check()
            layer = get_layer(handle, identifier)
            freed = _remove_layer(handle, layer)
            if freed is not None:
                removed.append(layer.diff_id)
                size += freed
        size += _remove_strays(handle)
        with FileLock(handle.layout.trees_lock):
            trees, tree_size = _remove_trees(handle)
            blobs, blob_size = _remove_blobs(handle)
        return Reclaimed(tuple(removed), trees, blobs, size + tree_size + blob_size)
    finally:
        lock.release()


def _remove_layer(handle: StoreHandle, layer: LayerRecord) -> int | None:
    """Remove one layer; return the bytes of disk it took, or None when it has to stay.

    It stays while a load holds it or one of its borrowers, and when a borrower is damaged: as long as nothing is
    removed, loading that one again heals it.
    """
    with ExitStack() as stack:
        stack.enter_context(FileLock(handle.layout.trees_lock))
        borrowers = handle.database.connection.execute(
            "SELECT DISTINCT layer FROM extent WHERE donor = ?", (layer.id,)
        ).fetchall()
        for diff_id in {layer.diff_id, *(get_layer(handle, row[0]).diff_id for row in borrowers)}:
            lock = FileLock(handle.layout.layer_lock(diff_id))
            if not lock.try_acquire():
                return None
            stack.callback(lock.release, remove=True)
        # From here on no load can take hold of it, neither for an image nor for its bytes.
        with handle.database.transaction(frees=True) as connection:
            if connection.execute(f"{_UNUSED} AND id = ?", (layer.id,)).fetchone() is None:
                return None
            connection.execute("INSERT INTO lease VALUES (?, ?)", (COLLECTOR, layer.id))
        stack.callback(_free, handle)
        try:
            _bequeath(handle, layer)
        except (LayerfsError, FileNotFoundError, NotADirectoryError) as error:
            _log.warning("layer %s stays, for what borrows from it cannot be changed: %s", layer.diff_id.short, error)
            return None
        # The files first: on a full disk this makes the room that the database needs to forget many rows.
        size = _remove_directory(handle, layer.diff_id)
        with handle.database.transaction(frees=True) as connection:
            connection.execute("DELETE FROM extent WHERE layer = ?", (layer.id,))
            connection.execute("DELETE FROM layer WHERE id = ?", (layer.id,))
        return size


def _free(handle: StoreHandle) -> None:
    """Let loads take the layer again that was to be removed, if it is still there."""
    with handle.database.transaction(frees=True) as connection:
        connection.execute("DELETE FROM lease WHERE owner = ?", (COLLECTOR,))


def _remove_directory(handle: StoreHandle, diff_id: Digest) -> int:
    """Remove the files of a layer that is about to have no record; return the bytes of disk they took."""
    directory = handle.layout.layer(diff_id)
    size = files_disk(os.path.join(directory, name) for name in ("layer.tar", "tree.erofs"))
    remove_tree(directory, missing_ok=True)
    remove_tree(handle.layout.unpacked(diff_id), missing_ok=True)
    return size


def _remove_strays(handle: StoreHandle) -> int:
    """Remove layers that have their place but no record: a crash came between the two. Return their bytes of disk."""
    size = 0
    for algorithm in ("sha256", "sha512"):
        known = {row[0] for row in handle.database.connection.execute("SELECT diff_id FROM layer")}
        for name in os.listdir(os.path.join(handle.layout.root, "layers", algorithm)):
            if f"{algorithm}:{name}" in known:
                continue
            try:
                diff_id = Digest(algorithm, name)
            except InvalidReference:
                continue  # nothing of ours: lost+found
            lock = FileLock(handle.layout.layer_lock(diff_id))
            if not lock.try_acquire():
                continue  # a load is about to record it
            try:
                if find_layer(handle, diff_id) is None:
                    size += _remove_directory(handle, diff_id)
            finally:
                lock.release(remove=True)
    return size


def _bequeath(handle: StoreHandle, layer: LayerRecord) -> None:
    """Give what other layers borrow from this one to one of them."""
    connection = handle.database.connection
    rows = connection.execute(
        "SELECT donor_offset, size, layer, offset FROM extent WHERE donor = ? AND layer != ?"
        " ORDER BY donor_offset, layer, offset",
        (layer.id, layer.id),
    ).fetchall()
    if not rows:
        return
    moves: dict[int, _Move] = {}
    for donor_offset, size, borrower, offset in rows:
        moves.setdefault(donor_offset, _Move(donor_offset, size, borrower, offset))
    _copy(handle, layer, moves.values())
    borrowers = sorted({row[2] for row in rows})
    _rewrite_trees(handle, layer, moves, borrowers)
    with handle.database.transaction() as transaction:
        for donor_offset, _, borrower, offset in rows:
            move = moves[donor_offset]
            if (borrower, offset) == (move.heir, move.new):
                transaction.execute("DELETE FROM extent WHERE layer = ? AND offset = ?", (borrower, offset))
                transaction.execute(
                    "INSERT INTO content SELECT ?, ?, size, mark FROM content WHERE layer = ? AND offset = ?",
                    (borrower, offset, layer.id, donor_offset),
                )
            else:
                transaction.execute(
                    "UPDATE extent SET donor = ?, donor_offset = ? WHERE layer = ? AND offset = ?",
                    (move.heir, move.new, borrower, offset),
                )
        for identifier in borrowers:
            record = get_layer(handle, identifier)
            tar = os.stat(handle.layout.layer_tar(record.diff_id))
            tree = os.stat(handle.layout.layer_tree(record.diff_id))
            transaction.execute(
                "UPDATE layer SET tar_mtime = ?, tree_size = ?, tree_mtime = ? WHERE id = ?",
                (tar.st_mtime_ns, tree.st_size, tree.st_mtime_ns, identifier),
            )


def _copy(handle: StoreHandle, layer: LayerRecord, moves: Iterable[_Move]) -> None:
    """Copy each range into its heir's hole, durably."""
    by_heir: dict[int, list[_Move]] = {}
    for move in moves:
        by_heir.setdefault(move.heir, []).append(move)
    source = os.open(handle.layout.layer_tar(layer.diff_id), os.O_RDONLY | os.O_CLOEXEC)
    try:
        for heir, ranges in by_heir.items():
            path = handle.layout.layer_tar(get_layer(handle, heir).diff_id)
            target = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                for move in ranges:
                    copy_range(source, move.old, target, move.new, move.size)
                if handle.sync:
                    os.fsync(target)
            finally:
                os.close(target)
    finally:
        os.close(source)


def _rewrite_trees(handle: StoreHandle, layer: LayerRecord, moves: dict[int, _Move], borrowers: list[int]) -> None:
    """Write every tree anew that points into the leaving layer."""
    keys = LayerKeys(handle)
    heirs = {move.heir: keys.get(get_layer(handle, move.heir).diff_id) for move in moves.values()}
    leaving = keys.get(layer.diff_id)
    for identifier in borrowers:
        diff_id = get_layer(handle, identifier).diff_id
        path = handle.layout.layer_tree(diff_id)
        root = read_nodes(open_tree(path), keys.get)
        for node in walk(root):
            if node.device is leaving:
                move = moves[node.offset]
                node.device, node.offset = heirs[move.heir], move.new
        # The donors are those of all holes, also of files that the layer itself replaces later.
        found = find_donors(handle, get_layer(handle, identifier))
        donors = {keys.get(donor.diff_id) for donor in found if donor.id != layer.id}
        donors |= {
            heirs[moves[offset].heir]
            for (offset,) in handle.database.connection.execute(
                "SELECT donor_offset FROM extent WHERE layer = ? AND donor = ?", (identifier, layer.id)
            )
        }
        write_document(path, encode_layer_tree(root, keys.get(diff_id), donors), sync=handle.sync)
    marks = ", ".join("?" * len(borrowers))
    rows = handle.database.connection.execute(
        "SELECT chain_id, min(image.id) FROM image JOIN image_layer ON image_layer.image = image.id"
        f" WHERE image_layer.layer IN ({marks}) GROUP BY chain_id",
        borrowers,
    )
    for chain, image in rows.fetchall():
        path = handle.layout.merged_tree(stored_digest(chain))
        if is_tree_later(path):
            continue  # made from the layers when it is needed
        chain_keys = [keys.get(own.diff_id) for own in chain_layers(handle, image)]
        try:
            if chain_id([key.known for key in chain_keys]) != stored_digest(chain):
                raise FormatError("the image was removed meanwhile")
            root = read_nodes(open_tree(path), keys.get, chain_keys)
            for node in walk(root):
                if node.device is leaving:
                    move = moves[node.offset]
                    node.device, node.offset = heirs[move.heir], move.new
            write_document(path, encode_merged_tree(handle, root, chain_keys), sync=handle.sync)
        except (LayerfsError, OSError):
            # Made from the layers too, when it is needed: on a full disk this one makes room.
            os.unlink(path)
            fsync_directory(os.path.dirname(path), sync=handle.sync)


def _remove_trees(handle: StoreHandle) -> tuple[int, int]:
    """Remove merged trees of no image, the directories that they were unpacked to, and those set aside of no layer."""
    known = {row[0] for row in handle.database.connection.execute("SELECT chain_id FROM image")}
    layers = {row[0] for row in handle.database.connection.execute("SELECT diff_id FROM layer")}
    for algorithm in ("sha256", "sha512"):
        directory = os.path.join(handle.layout.root, "unpacked", algorithm)
        for name in os.listdir(directory):
            owner, _, rest = name.partition(".")
            # Without a dot it goes with its layer; what begins with one is under way.
            if owner and rest and f"{algorithm}:{owner}" not in (known if rest.startswith("merged") else layers):
                remove_tree(os.path.join(directory, name), missing_ok=True)
    return _remove_files(handle, "images", lambda digest: str(digest) in known)


def _remove_blobs(handle: StoreHandle) -> tuple[int, int]:
    """Remove documents, and kept blobs, of no image."""
    connection = handle.database.connection
    manifests = {row[0] for row in connection.execute(
        "SELECT manifest FROM image UNION SELECT manifest FROM name UNION SELECT manifest FROM origin"
        " UNION SELECT manifest FROM snapshot"
    )}  # fmt: skip
    others = connection.execute("SELECT digest FROM image UNION SELECT digest FROM origin")
    known = manifests.union(row[0] for row in others)
    kept: set[Digest] | None = None
    damaged = False  # a manifest: what it names nobody knows until its image is loaded again

    def is_known(digest: Digest) -> bool:
        nonlocal kept, damaged
        if str(digest) in known:
            return True
        if kept is None:  # most stores keep no blobs, and need not read their manifests
            named = [manifest_blobs(handle, stored_digest(text)) for text in manifests]
            kept = {blob.digest for blobs in named for blob in blobs or ()}
            damaged = None in named
        return digest in kept or damaged

    return _remove_files(handle, "blobs", is_known)


def _remove_files(handle: StoreHandle, kind: str, is_known: Callable[[Digest], bool]) -> tuple[int, int]:
    """Remove the files of one kind that are not known; return how many and their bytes."""
    count = size = 0
    for algorithm in ("sha256", "sha512"):
        directory = os.path.join(handle.layout.root, kind, algorithm)
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            try:
                if is_known(Digest(algorithm, name.removesuffix(".erofs"))):
                    continue
            except InvalidReference:
                pass  # the temporary file of a write that a crash cut short
            size += files_disk([path])
            os.unlink(path)
            count += 1
        if count:
            fsync_directory(directory, sync=handle.sync)
    return count, size
