"""What of a store is mounted, also by processes that died before they could say so, and the locks around that.

Apart from what mounts, so that those who only ask start without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from layerfs.errors import MountError
from layerfs.formats.digest import Digest
from layerfs.linux.lock import FileLock
from layerfs.linux.mountinfo import MountEntry, read_mounts
from layerfs.linux.safe_path import make_private
from layerfs.linux.upper_use import is_upper_in_use
from layerfs.mount.record import MountRecords, identify
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_layers, image_names, list_images
from layerfs.store.snapshot import Snapshot, find_snapshot, list_snapshots

__all__ = ["adopt_mounts", "container_lock", "only_one", "records_of", "target_lock"]


def records_of(handle: StoreHandle) -> MountRecords:
    """Return the mount records of a store."""
    return MountRecords(os.path.join(handle.layout.runroot, "mounts"), identify(handle.layout.root))


def adopt_mounts(handle: StoreHandle) -> None:
    """Record kernel mounts of this store that nobody recorded: their process was killed just after it had made them.

    Only this mount namespace is looked at. Whatever serves FUSE mounts holds a lock on what it writes to.
    """
    records = records_of(handle)
    # The kernel may show a path as it was given, or without its symbolic links.
    roots = {handle.layout.root, os.path.realpath(handle.layout.root)}
    snapshots, unpacked, images = (
        tuple(os.path.join(root, name, "") for root in roots) for name in ("snapshots", "unpacked", "images")
    )
    found = [
        entry
        for entry in read_mounts(fstype="overlay")
        if (entry.option("upperdir") or "").startswith(snapshots)
        or (entry.option("upperdir") is None and (entry.option("lowerdir+") or "").startswith(unpacked))
    ]
    found += [entry for entry in read_mounts(fstype="erofs") if entry.source.startswith(images)]
    # Others of the same file system are the user's own bind mounts.
    known = {record.device for record in records.live() if record.is_here} if found else set()
    for entry in found:
        if entry.root != "/" or entry.device in known:
            continue
        try:
            lock = FileLock(target_lock(handle, entry.target))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return  # and nothing can be recorded
        if not lock.try_acquire():
            continue  # whoever holds it is about to record the mount
        try:
            if all(record.device != entry.device for record in records.live() if record.is_here):
                _adopt(handle, entry)
        except MountError as error:
            if error.errno != errno.ENOENT:  # it was unmounted meanwhile
                raise
        finally:
            lock.release(remove=True)


def _adopt(handle: StoreHandle, entry: MountEntry) -> None:
    upper = entry.option("upperdir")
    if upper is not None and is_upper_in_use(upper) is False:
        return  # the path is another store's now, and what is mounted was moved
    identifier = os.path.basename(os.path.dirname(upper)) if upper is not None else None
    snapshot = next((row for row in list_snapshots(handle) if row.id == identifier), None)
    for image in list_images(handle):
        if image.digest == snapshot.image if snapshot is not None else _shows(handle, entry, image):
            names = image_names(handle, image)
            records_of(handle).add(
                target=entry.target, mount_id=entry.mount_id, image_id=str(image.digest),
                image_name=names[0] if names else None, container=snapshot.name if snapshot is not None else None,
                backend="overlay", read_only=snapshot is None,
            )  # fmt: skip
            return


def _shows(handle: StoreHandle, entry: MountEntry, image: ImageRecord) -> bool:
    """Return whether a mount without a writable layer is of this image."""
    layout = handle.layout
    if entry.fstype == "erofs":
        return os.path.realpath(entry.source) == os.path.realpath(layout.merged_tree(image.chain_id))
    # An empty directory on top makes an overlay of a single one.
    lowers = [os.path.realpath(path) for path in entry.option_values("lowerdir+") if path != "/"]
    stacked = [layout.unpacked(layer.diff_id) for layer in image_layers(handle, image)]
    return lowers in (
        [os.path.realpath(layout.unpacked_merged(image.chain_id))], [*map(os.path.realpath, stacked[::-1])]
    )  # fmt: skip


@contextlib.contextmanager
def container_lock(handle: StoreHandle, snapshot: Snapshot | None) -> Iterator[None]:
    """Let one process at a time look whether a container is mounted, and mount or remove it.

    Raises:
        NotFound: the container was removed meanwhile.
    """
    if snapshot is None:
        yield
        return
    with only_one(handle.layout.lock(f"snapshot-{snapshot.id}")):
        find_snapshot(handle, snapshot.id)
        yield


@contextlib.contextmanager
def only_one(path: str) -> Iterator[None]:
    """Hold a lock whose file goes with it."""
    lock = FileLock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release(remove=True)


def target_lock(handle: StoreHandle, place: str) -> str:
    """Return the path of the lock that a process holds while it mounts at a place.

    Raises:
        OSError: EROFS if neither the store nor the run root takes a file.
    """
    name = f"target-{Digest.of(os.fsencode(place)).hex}"
    lock = handle.layout.lock(name)
    if os.access(os.path.dirname(lock), os.W_OK):
        return lock
    # A store that cannot be written to: what is mounted from it is a matter of this run root alone.
    directory = os.path.join(handle.layout.runroot, "locks")
    make_private(handle.layout.runroot)
    make_private(directory)
    return os.path.join(directory, name)
