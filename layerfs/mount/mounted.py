"""What of a store is mounted, also by processes that died before they could say so, and the locks around that.

Apart from what mounts, so that those who only ask start without it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from layerfs.errors import Conflict, MountError
from layerfs.formats.digest import Digest
from layerfs.linux.lock import FileLock
from layerfs.linux.mountinfo import (
    MountEntry,
    find_foreign_upper_mount,
    find_upper_mount,
    is_listed_elsewhere,
    read_mounts,
)
from layerfs.linux.process import sees_all_processes
from layerfs.linux.safe_path import make_private
from layerfs.linux.upper_use import is_upper_in_use
from layerfs.mount.record import MountRecord, MountRecords, identify
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_layers, image_names, list_images
from layerfs.store.snapshot import Snapshot, find_snapshot, is_dressed, list_snapshots

__all__ = [
    "adopt_mounts",
    "container_lock",
    "only_one",
    "records_of",
    "refuse_mounted",
    "target_lock",
    "wait_until_free",
    "why_mounted",
]


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


def refuse_mounted(handle: StoreHandle, snapshot: Snapshot) -> None:
    """Refuse a container whose writable layer is in use; its lock is held.

    Raises:
        Conflict: it is mounted, or was unmounted lazily and somebody still works in it.
    """
    problem = why_mounted(handle, snapshot)
    if problem is not None:
        raise problem


def why_mounted(handle: StoreHandle, snapshot: Snapshot) -> Conflict | None:
    """Return what is wrong with taking a container's writable layer for one's own, None if nobody uses it."""
    records = records_of(handle)
    upper = handle.layout.upper(snapshot.id)
    mounted = [
        record
        for record in records.live()
        if record.container == snapshot.name and not _is_over(records, record, upper)
    ]
    if mounted and mounted[0].is_hidden:
        return _mounted_elsewhere(snapshot, mounted[0].target)
    targets = [record.target for record in mounted]
    if not targets and not os.path.lexists(upper):
        return None  # somebody has removed it by hand, and nothing is left to protect
    # Whoever mounted it with another run root left no record here, but the kernel knows.
    entry = find_upper_mount(upper) if not targets else None
    if entry is not None and is_upper_in_use(upper) is False:
        entry = None  # of the directory that had this path before
    if targets or entry is not None:
        target = targets[0] if targets else entry.target if entry is not None else ""
        known = snapshot.name if targets else target
        return Conflict(
            f"container {snapshot.name} is mounted at {target}", reason="mounted",
            hint=f"Unmount it first with: {'layerfs umount' if targets else 'umount'} {known}",
        )  # fmt: skip
    # Only what was mounted before can live on elsewhere; a new container need not wait for a look at every process.
    dressed = is_dressed(upper)
    listed = _is_listed(upper) if dressed else False
    if listed is not False and (foreign := find_foreign_upper_mount(upper)) is not None:
        pid, entry = foreign
        return Conflict(
            f"container {snapshot.name} is still mounted in another mount namespace, that of process {pid}",
            reason="mounted", hint=f"End it, or unmount there: nsenter --mount --target {pid} umount {entry.target}",
        )  # fmt: skip
    if _is_locked(upper):
        return Conflict(
            f"container {snapshot.name} is served through FUSE, by a mount without a record here", reason="mounted",
            hint="Find it with findmnt --types fuse.layerfs, and unmount it with umount.",
        )  # fmt: skip
    if (listed or (dressed and not sees_all_processes())) and is_upper_in_use(upper):
        return _mounted_elsewhere(snapshot)
    users = records.users(snapshot.name)
    if users:
        return Conflict(
            f"container {snapshot.name} was unmounted lazily and is still in use by {', '.join(map(str, users[:5]))}",
            reason="mounted", hint="End these processes first.",
        )  # fmt: skip
    return None


def _is_over(records: MountRecords, record: MountRecord, upper: str) -> bool:
    """Return whether a mount that cannot be seen from here has ended, and forget it then."""
    if not record.is_hidden or not os.path.lexists(upper):
        return False
    ended = not _is_locked(upper) if record.backend == "fuse" else is_upper_in_use(upper) is False
    if ended:
        records.remove(record.id)
    return ended


def _is_listed(upper: str) -> bool | None:
    """Return whether the kernel lists an overlay of this upper directory elsewhere; None if it does not tell."""
    try:
        return is_listed_elsewhere(upper)
    except OSError:  # it lists nothing, or nothing to this process
        return None


def _mounted_elsewhere(snapshot: Snapshot, target: str | None = None) -> Conflict:
    place = "" if target is None else f" at {target}"
    return Conflict(
        f"container {snapshot.name} is mounted{place} where this process cannot look, in another PID namespace or in a"
        " mount namespace without processes", reason="mounted",
        hint="Unmount it there, or ask on the host, which sees all processes.",
    )  # fmt: skip


def wait_until_free(upper: str, seconds: float) -> None:
    """Wait until no union serves an upper directory any more, so many seconds at most."""
    end = time.monotonic() + seconds
    while _is_locked(upper) and time.monotonic() < end:
        time.sleep(0.01)


def _is_locked(upper: str) -> bool:
    """Return whether a union serves an upper directory: it holds a lock on it as long as it lives."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


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
