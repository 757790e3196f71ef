"""Whether a container's writable layer is in use, which nobody can say alone.

A record tells what this store's own processes mounted; the mount table what others mounted here; the kernel, asked for
its list of mounts or for an overlay that it must refuse, what lives in other mount namespaces; a lock what is served
through FUSE; and the processes what was unmounted while they work in it.
"""

from __future__ import annotations

import fcntl
import os
import time

from layerfs.errors import Conflict
from layerfs.linux.mountinfo import find_foreign_upper_mount, find_upper_mount, is_listed_elsewhere
from layerfs.linux.process import sees_all_processes
from layerfs.linux.upper_use import is_upper_in_use
from layerfs.mount.mounted import records_of
from layerfs.mount.record import MountRecord, MountRecords
from layerfs.store.handle import StoreHandle
from layerfs.store.snapshot import Snapshot, is_dressed

__all__ = ["refuse_mounted", "wait_until_free", "why_mounted"]


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
    recorded = _recorded(records, snapshot, upper)
    if recorded is not None or not os.path.lexists(upper):
        return recorded  # a layer that somebody has removed by hand needs no protection
    # Only what was mounted before can live on elsewhere; a new container need not wait for a look at every process.
    dressed = is_dressed(upper)
    listed = is_listed_elsewhere(upper) if dressed else False
    return (
        _mounted_here(snapshot, upper)
        or (None if listed is False else _seen_elsewhere(snapshot, upper))
        or _served(snapshot, upper)
        or (_hidden(snapshot, upper) if listed or (dressed and not sees_all_processes()) else None)
        or _left_in_use(records, snapshot)
    )


def wait_until_free(upper: str, seconds: float) -> None:
    """Wait until no union serves an upper directory any more, so many seconds at most."""
    end = time.monotonic() + seconds
    while _is_locked(upper) and time.monotonic() < end:
        time.sleep(0.01)


def _recorded(records: MountRecords, snapshot: Snapshot, upper: str) -> Conflict | None:
    """Look at what the store's own processes wrote down."""
    for record in records.live():
        if record.container == snapshot.name and not _is_over(records, record, upper):
            if record.is_hidden:
                return _out_of_sight(snapshot, record.target)
            return _at(snapshot, record.target, f"layerfs umount {snapshot.name}")
    return None


def _is_over(records: MountRecords, record: MountRecord, upper: str) -> bool:
    """Return whether a mount that cannot be seen from here has ended, and forget it then."""
    if not record.is_hidden or not os.path.lexists(upper):
        return False
    ended = not _is_locked(upper) if record.backend == "fuse" else is_upper_in_use(upper) is False
    if ended:
        records.remove(record.id)
    return ended


def _mounted_here(snapshot: Snapshot, upper: str) -> Conflict | None:
    """Look at the mount table: whoever mounted it with another run root left no record here."""
    entry = find_upper_mount(upper)
    if entry is None or is_upper_in_use(upper) is False:  # that of the directory that had this path before
        return None
    return _at(snapshot, entry.target, f"umount {entry.target}")


def _seen_elsewhere(snapshot: Snapshot, upper: str) -> Conflict | None:
    """Look at the mount table of every process."""
    foreign = find_foreign_upper_mount(upper)
    if foreign is None:
        return None
    pid, entry = foreign
    return Conflict(
        f"container {snapshot.name} is still mounted in another mount namespace, that of process {pid}",
        reason="mounted", hint=f"End it, or unmount there: nsenter --mount --target {pid} umount {entry.target}",
    )  # fmt: skip


def _served(snapshot: Snapshot, upper: str) -> Conflict | None:
    """Look for the lock of whoever serves it."""
    if not _is_locked(upper):
        return None
    return Conflict(
        f"container {snapshot.name} is served through FUSE, by a mount without a record here", reason="mounted",
        hint="Find it with findmnt --types fuse.layerfs, and unmount it with umount.",
    )  # fmt: skip


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


def _hidden(snapshot: Snapshot, upper: str) -> Conflict | None:
    """Ask the kernel, which knows of mounts that no process here can see."""
    return _out_of_sight(snapshot) if is_upper_in_use(upper) else None


def _left_in_use(records: MountRecords, snapshot: Snapshot) -> Conflict | None:
    """Look for processes that still work in what was unmounted."""
    users = records.users(snapshot.name)
    if not users:
        return None
    return Conflict(
        f"container {snapshot.name} was unmounted lazily and is still in use by {', '.join(map(str, users[:5]))}",
        reason="mounted", hint="End these processes first.",
    )  # fmt: skip


def _at(snapshot: Snapshot, target: str, command: str) -> Conflict:
    return Conflict(
        f"container {snapshot.name} is mounted at {target}", reason="mounted", hint=f"Unmount it first with: {command}"
    )


def _out_of_sight(snapshot: Snapshot, target: str | None = None) -> Conflict:
    place = "" if target is None else f" at {target}"
    return Conflict(
        f"container {snapshot.name} is mounted{place} where this process cannot look, in another PID namespace or in a"
        " mount namespace without processes", reason="mounted",
        hint="Unmount it there, or ask on the host, which sees all processes.",
    )  # fmt: skip
