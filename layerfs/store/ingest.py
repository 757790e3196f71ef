"""Bringing layers into the store: one :class:`Ingest` per load.

A layer is invisible until it is whole, verified and durable: it is written in a private directory, synced, renamed into
place and only then recorded. Syncing and recording happen in a thread of their own, in order, while the next layer is
being read. Until an image refers to them the layers of a load are held by leases; a load that dies leaves leases and a
directory whose lock is free, and the next one sweeps both away.

Two loads that want one layer do the work once: each layer has a lock file, and who waited finds it done. A load never
waits for a lock while it holds another that depends on its own progress, so two loads cannot block each other.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from layerfs.errors import DigestMismatch, LayerfsError, LimitExceeded
from layerfs.formats.digest import Digest
from layerfs.formats.tree import MAX_TEXT, Node
from layerfs.linux.disk_use import tree_disk
from layerfs.linux.durable import publish
from layerfs.linux.lock import FileLock
from layerfs.linux.safe_path import private_opener, remove_tree
from layerfs.store.database import stored_digest
from layerfs.store.derive import LayerKeys, encode_layer_tree, restore_record, rewrite_merged_trees
from layerfs.store.handle import StoreHandle
from layerfs.store.holders import Holders
from layerfs.store.kept_blob import KeptBlobs
from layerfs.store.layer import LayerRecord, find_donors, find_layer, is_intact
from layerfs.store.layer_writer import LayerKey, LayerWriter
from layerfs.store.poll import Poll

__all__ = ["COLLECTOR", "Ingest", "IngestedLayer", "Pending", "sweep"]

_log = logging.getLogger(__name__)


#: Owner of the lease on a layer that the garbage collector is about to remove; the name of its lock as well.
COLLECTOR = "gc"


#: Bytes that a load keeps free for its end: without room for a few pages of the database, a load that filled the disk
#: could not even record that its layers are given up.
_RESERVE = 256 << 10


#: Bytes of link targets and of different xattrs in all layers of a load, whose trees are in memory until it ends.
_MAX_TEXT = 4 * MAX_TEXT


#: Layers that wait for being made durable; each keeps its file open.
_MOST_WAITING = 32


#: Seconds that a load waits for another one before it says so.
_SILENCE = 3.0


@dataclass(slots=True)
class Pending:
    """A layer being written; hand its pieces to ``writer.write`` and end it with :meth:`Ingest.finish_layer`."""

    writer: LayerWriter
    directory: str
    expected: Digest | None
    lock: FileLock | None


@dataclass(slots=True)
class IngestedLayer:
    """A layer that this load can build images from.

    Attributes:
        diff_id: its name.
        root: its tree in memory when this load has just read it, None when it was in the store before.
        key: the device key in ``root``.
    """

    diff_id: Digest
    root: Node | None
    key: LayerKey


@dataclass(slots=True)
class _Job:
    """What the committing thread does for one layer."""

    pending: Pending
    diff_id: Digest
    image: bytes
    compressed: tuple[Digest, int] | None


class Ingest:
    """One load: a context manager that at its end waits for the last layer and removes leases and unfinished work.

    All methods belong to one thread.

    Attributes:
        handle: the store.
        owner: names this load in the lease table; also its directory below ``ingest/``.
        keys: the device keys of all layers that this load touches.
        blobs: where it keeps compressed blobs; None when it keeps none.
    """

    def __init__(
        self, handle: StoreHandle, *, keep_blobs: bool = False, check: Callable[[], None] | None = None
    ) -> None:
        """Prepare a private directory.

        Args:
            handle: the store.
            keep_blobs: whether compressed blobs are kept beside their layers.
            check: polled while waiting for another load; what it raises ends this one.
        """
        self.handle = handle
        self.owner = os.urandom(8).hex()
        self._check = Poll(check)
        self._directory = os.path.join(handle.layout.ingest, self.owner)
        self._lock = FileLock(handle.layout.lock(f"ingest-{self.owner}"))
        self._done: dict[Digest, IngestedLayer] = {}
        self.keys = LayerKeys(handle)
        self.blobs = KeptBlobs(handle, self._directory) if keep_blobs else None
        self._pending: Pending | None = None
        self._count = 0
        self._text = 0
        self._holders = Holders(handle, self.keys, lambda layer: bool(self._lease(layer)))
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._restored: list[LayerRecord] = []

    def __enter__(self) -> Self:
        """Take the lock that tells other processes that this load is alive.

        Raises:
            StoreError: the database contradicts itself, or cannot be written.
            OSError: ENOSPC, EIO.
        """
        self.handle.database.refuse_contradictions()
        sweep(self.handle)
        self._lock.acquire()
        try:
            os.mkdir(self._directory, 0o700)
            with open(os.path.join(self._directory, "reserve"), "xb", opener=private_opener) as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(self._directory, missing_ok=True)
            self._lock.release(remove=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clean up; layers that no image uses are left to the garbage collector, which the caller runs."""
        try:
            self._stop_thread()
            self._holders.close()
            if self.blobs is not None:
                self.blobs.close()
            if self._pending is not None:
                self._drop(self._pending)
        finally:
            # What cannot be cleaned up now, the next sweep does, if the lock lets it; the load itself is done, or has
            # its own error to tell.
            with contextlib.suppress(OSError):
                remove_tree(self._directory, missing_ok=True)
            with contextlib.suppress(LayerfsError), self.handle.database.transaction() as connection:
                connection.execute("DELETE FROM lease WHERE owner = ?", (self.owner,))
            self._lock.release(remove=True)

    def find_layer(self, diff_id: Digest) -> IngestedLayer | None:
        """Return a layer that needs no bytes: of this load, or in the store and whole. It is leased from now on."""
        return self.find_layers([diff_id]).get(diff_id)

    def find_layers(self, diff_ids: Sequence[Digest]) -> dict[Digest, IngestedLayer]:
        """Return those of many layers that need no bytes, as :meth:`find_layer`, with one commit for all leases."""
        records = (find_layer(self.handle, diff_id) for diff_id in dict.fromkeys(diff_ids) if diff_id not in self._done)
        self._take(*(layer for layer in records if layer is not None and self._usable(layer)))
        return {diff_id: self._done[diff_id] for diff_id in diff_ids if diff_id in self._done}

    def is_blob_of(self, digest: Digest, size: int, layer: IngestedLayer) -> bool:
        """Return whether a blob of this digest and size is known to decompress to a layer, or is its tar itself."""
        row = self.handle.database.connection.execute(
            "SELECT 1 FROM layer LEFT JOIN compressed ON compressed.layer = layer.id AND compressed.digest = ?1"
            " WHERE diff_id = ?2 AND (compressed.size = ?3 OR (?1 = ?2 AND tar_size = ?3))",
            (str(digest), str(layer.diff_id), size),
        ).fetchone()
        return row is not None

    def add_blob(self, layer: IngestedLayer, diff_id: Digest, compressed: tuple[Digest, int]) -> None:
        """Record a blob that was read although its layer was there, after comparing what it decompressed to.

        Raises:
            DigestMismatch: it is another layer.
        """
        if diff_id != layer.diff_id:
            record = find_layer(self.handle, layer.diff_id)
            size = record.tar_size if record is not None else 0
            raise DigestMismatch("layer", expected=str(layer.diff_id), actual=str(diff_id), size=size)
        self.flush()
        self._record_compressed(diff_id, compressed)

    def find_compressed(self, digest: Digest) -> IngestedLayer | None:
        """Return the layer that a blob is known to decompress to, if the store has it whole."""
        row = self.handle.database.connection.execute(
            "SELECT layer.diff_id FROM compressed JOIN layer ON layer.id = compressed.layer"
            " WHERE compressed.digest = ?",
            (str(digest),),
        ).fetchone()
        return self.find_layer(stored_digest(row[0])) if row else None

    def begin_layer(self, diff_id: Digest | None) -> Pending | IngestedLayer:
        """Start a layer, unless it turns out to be there already.

        Args:
            diff_id: its digest when it is known beforehand; another load of the same layer is then waited for.

        Returns:
            What to write to, or the layer when no bytes are needed.
        """
        self._raise_failure()
        lock = None
        heals = False
        try:
            if diff_id is not None:
                found = self.find_layer(diff_id)
                if found is None:
                    lock = self._lock_layer(diff_id)
                    found = self._find_healed(diff_id)
                if found is not None:
                    if lock is not None:
                        lock.release(remove=True)
                    return found
                heals = find_layer(self.handle, diff_id) is not None
            self._count += 1
            directory = os.path.join(self._directory, str(self._count))
            os.mkdir(directory, 0o700)
            # A layer that is healed may be the donor of others, so it has to hold all its bytes itself.
            lenders = None if heals else self._holders
            writer = LayerWriter(os.path.join(directory, "layer.tar"), lenders, sync=self.handle.sync)
        except BaseException:
            if lock is not None:
                lock.release(remove=True)
            raise
        self._pending = Pending(writer, directory, diff_id, lock)
        return self._pending

    def finish_layer(self, pending: Pending, diff_id: Digest, compressed: tuple[Digest, int] | None) -> IngestedLayer:
        """End a layer: verify it, and hand it to the committing thread.

        Args:
            pending: from :meth:`begin_layer`.
            diff_id: what the bytes really digest to.
            compressed: digest and size of the blob they came in, when that is a blob of its own.

        Raises:
            DigestMismatch: it is not the layer that was announced.
            FormatError: the tar is cut short.
            LimitExceeded: the layers of this load would take too much memory.
            OSError: ENOSPC, EIO.
        """
        try:
            return self._finished(pending, diff_id, compressed)
        except BaseException:
            # Whoever ends a layer has let go of it: nobody else would.
            self._drop(pending)
            raise

    def _finished(self, pending: Pending, diff_id: Digest, compressed: tuple[Digest, int] | None) -> IngestedLayer:
        writer = pending.writer
        if pending.expected is not None and diff_id != pending.expected:
            raise DigestMismatch("layer", expected=str(pending.expected), actual=str(diff_id), size=writer.tar_size)
        root = writer.finish()
        self._text += writer.tree.text
        if self._text > _MAX_TEXT:
            raise LimitExceeded(f"layers with more than {_MAX_TEXT >> 20} MiB of link targets and xattrs")
        if pending.lock is None:
            found = self.find_layer(diff_id)
            if found is None:
                pending.lock = self._lock_layer(diff_id)
                found = self._find_healed(diff_id)
            if found is not None:
                self._drop(pending)
                if compressed is not None:
                    self._record_compressed(diff_id, compressed)
                return found
            if find_layer(self.handle, diff_id) is not None:
                # A damaged layer is replaced, and others may borrow from it: the new one must not borrow in turn.
                writer.fill(lambda key: self.handle.layout.layer_tar(key.known))
        writer.key.diff_id = diff_id
        image = encode_layer_tree(root, writer.key, (extent.donor for extent in writer.extents))
        self.keys.add(writer.key)
        self._holders.add(writer.key, writer.content, os.path.join(pending.directory, "layer.tar"))
        self._pending = None
        self._submit(_Job(pending, diff_id, image, compressed))
        done = self._done[diff_id] = IngestedLayer(diff_id, root, writer.key)
        return done

    def abandon(self, pending: Pending) -> None:
        """Give a layer up; what was written of it is removed."""
        self._drop(pending)

    def flush(self) -> None:
        """Wait until every finished layer is durable and recorded.

        Raises:
            OSError: what went wrong while committing one.
        """
        self._stop_thread()
        self._raise_failure()

    def _find_healed(self, diff_id: Digest) -> IngestedLayer | None:
        """Find a layer again whose lock is held, now that this load may have healed what it borrows from."""
        layer = find_layer(self.handle, diff_id)
        if layer is None:
            return None
        self.flush()
        if self._usable(layer, locked=True):
            self._take(layer)
        return self._done.get(diff_id)

    def _take(self, *layers: LayerRecord) -> None:
        if self._restored:
            # Whoever healed them may have been killed before this.
            rewrite_merged_trees(self.handle, self._restored, carrying=True)
            self._restored.clear()
        leased = self._lease(*layers)
        for layer in layers:
            if layer.id in leased:
                self._done[layer.diff_id] = IngestedLayer(layer.diff_id, None, self.keys.get(layer.diff_id))

    def _usable(self, layer: LayerRecord, *, locked: bool = False) -> bool:
        """Return whether a layer and its donors are whole; what was only touched has its record brought up to date.

        A layer that another process is healing or moving bytes into does not count.
        """
        parts = [layer, *find_donors(self.handle, layer)]
        return all(
            is_intact(self.handle, part) or self._restore(part, locked=locked and part is layer) for part in parts
        )

    def _restore(self, layer: LayerRecord, *, locked: bool) -> bool:
        lock = None if locked else FileLock(self.handle.layout.layer_lock(layer.diff_id))
        if lock is not None and not lock.try_acquire():
            return False
        try:
            current = find_layer(self.handle, layer.diff_id)
            if current is None:
                return False
            if not is_intact(self.handle, current):
                restore_record(self.handle, current, check=self._check)
                self._restored.append(current)
        except (OSError, LayerfsError) as error:
            self._check.pass_on(error)
            return False
        finally:
            if lock is not None:
                lock.release(remove=True)
        return True

    def _lease(self, *layers: LayerRecord) -> set[int]:
        """Keep layers from being collected; return which could be: not one that is gone, or is just being removed."""
        if not layers:
            return set()
        leased = set()
        with self.handle.database.transaction() as connection:
            for layer in layers:
                connection.execute(
                    "INSERT OR IGNORE INTO lease SELECT ?, id FROM layer WHERE id = ? AND diff_id = ?"
                    " AND NOT EXISTS (SELECT 1 FROM lease WHERE owner = ? AND layer = ?)",
                    (self.owner, layer.id, str(layer.diff_id), COLLECTOR, layer.id),
                )
                row = connection.execute(
                    "SELECT 1 FROM lease WHERE owner = ? AND layer = ?", (self.owner, layer.id)
                ).fetchone()
                if row is not None:
                    leased.add(layer.id)
        return leased

    def _lock_layer(self, diff_id: Digest) -> FileLock:
        told = time.monotonic() + _SILENCE

        def check() -> None:
            nonlocal told
            self._check()
            if time.monotonic() > told:
                told = math.inf
                _log.warning("another process is bringing in layer %s; waiting for it", diff_id.short)

        lock = FileLock(self.handle.layout.layer_lock(diff_id), check=check)
        lock.acquire()
        return lock

    def _record_compressed(self, diff_id: Digest, compressed: tuple[Digest, int]) -> None:
        with self.handle.database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO compressed SELECT ?, id, ? FROM layer WHERE diff_id = ?",
                (str(compressed[0]), compressed[1], str(diff_id)),
            )

    def _submit(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._commit_all, name="layerfs-commit", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _stop_thread(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _commit_all(self) -> None:
        """Commit layers in order; after a failure the rest is only cleaned up."""
        while (job := self._jobs.get()) is not None:
            try:
                try:
                    if self._failure is None:
                        self._commit(job)
                finally:
                    self._drop(job.pending)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, by _raise_failure
                self._failure = self._failure or error

    def _commit(self, job: _Job) -> None:
        """Make one layer durable, give it its place, and record it, in this order."""
        pending, layout = job.pending, self.handle.layout
        tree = os.path.join(pending.directory, "tree.erofs")
        with open(tree, "xb", buffering=0, opener=private_opener) as file:
            file.write(job.image)
        tree_status = os.stat(tree)
        tar_status = pending.writer.status()
        place, aside = layout.layer(job.diff_id), pending.directory + ".old"
        replaces = os.path.lexists(place)
        if replaces:
            # A damaged layer, or one whose record a crash has lost. Mounts that use it keep its files open.
            os.rename(place, aside)
        try:
            publish(pending.directory, place, sync=self.handle.sync)
        except BaseException:
            if replaces and not os.path.lexists(place):
                os.rename(aside, place)
            raise
        if (record := find_layer(self.handle, job.diff_id)) is not None:
            # Images whose trees still take bytes from this layer's donors: from now on nothing keeps those.
            rewrite_merged_trees(self.handle, [record])
            self._set_aside_unpacked(record)
        row = (
            pending.writer.tar_size, tar_status.st_size, tar_status.st_mtime_ns, tree_status.st_size,
            tree_status.st_mtime_ns, pending.writer.tree.entries, time.time_ns(), str(job.diff_id),
        )  # fmt: skip
        with self.handle.database.transaction() as connection:
            connection.execute(
                "INSERT INTO layer (tar_size, file_size, tar_mtime, tree_size, tree_mtime, entries, created, diff_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (diff_id) DO UPDATE SET tar_size = excluded.tar_size,"
                " file_size = excluded.file_size, tar_mtime = excluded.tar_mtime, tree_size = excluded.tree_size,"
                " tree_mtime = excluded.tree_mtime",
                row,
            )
            ids = {job.diff_id: _layer_id(connection, job.diff_id)}
            layer = ids[job.diff_id]
            connection.execute("DELETE FROM extent WHERE layer = ?", (layer,))
            connection.execute("DELETE FROM content WHERE layer = ?", (layer,))
            for extent in pending.writer.extents:
                donor = extent.donor.known
                if donor not in ids:
                    ids[donor] = _layer_id(connection, donor)
                connection.execute(
                    "INSERT INTO extent VALUES (?, ?, ?, ?, ?)",
                    (layer, extent.offset, extent.size, ids[donor], extent.donor_offset),
                )
            connection.executemany(
                "INSERT INTO content VALUES (?, ?, ?, ?)", ((layer, *row) for row in pending.writer.content)
            )
            connection.execute("INSERT OR IGNORE INTO lease VALUES (?, ?)", (self.owner, layer))
            if job.compressed is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO compressed VALUES (?, ?, ?)",
                    (str(job.compressed[0]), layer, job.compressed[1]),
                )

    def _set_aside_unpacked(self, layer: LayerRecord) -> None:
        """Let a layer that was healed be unpacked anew: nobody has verified what it was unpacked to before.

        It keeps its place on the disk until the layer goes, for it may be mounted, in whatever namespace.
        """
        layout = self.handle.layout
        chains = self.handle.database.connection.execute(
            "SELECT DISTINCT chain_id FROM image JOIN image_layer ON image_layer.image = image.id WHERE layer = ?",
            (layer.id,),
        ).fetchall()
        for path in (
            layout.unpacked(layer.diff_id),
            *(layout.unpacked_merged(stored_digest(row[0])) for row in chains),
        ):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, f"{path}.{os.urandom(6).hex()}")

    def _drop(self, pending: Pending) -> None:
        """Release what a layer holds; what is still in its private directory goes when the load ends."""
        if pending is self._pending:
            self._pending = None
        try:
            pending.writer.close()
            with contextlib.suppress(OSError):
                remove_tree(pending.directory, missing_ok=True)
        finally:
            if pending.lock is not None:
                pending.lock.release(remove=True)


def sweep(handle: StoreHandle) -> int:
    """Remove what loads left behind that died; return the bytes of disk that it took.

    Layers that they had finished lose their lease, and go with the next garbage collection if no image uses them.
    """
    freed = 0
    with os.scandir(handle.layout.ingest) as entries:
        owners = {entry.name for entry in entries}
    # A lease without a directory: its load could not delete it, for want of space.
    owners |= {row[0] for row in handle.database.connection.execute("SELECT DISTINCT owner FROM lease")}
    for owner in owners:
        lock = FileLock(handle.layout.lock(f"ingest-{owner}"))
        if not lock.try_acquire():
            continue
        try:
            # The files first: on a full disk they are the room for the rest.
            path = os.path.join(handle.layout.ingest, owner)
            if os.path.isdir(path):
                freed += tree_disk(path)
                remove_tree(path)
            with handle.database.transaction(frees=True) as connection:
                connection.execute("DELETE FROM lease WHERE owner = ?", (owner,))
        finally:
            lock.release(remove=True)
    return freed


def _layer_id(connection: sqlite3.Connection, diff_id: Digest) -> int:
    row = connection.execute("SELECT id FROM layer WHERE diff_id = ?", (str(diff_id),)).fetchone()
    return int(row[0])
