"""Who mounted what where: one small JSON file per mount, below the run root.

A mount outlives the process that made it, and may end without layerfs: by umount(8), by a reboot, with its namespace.
So a record is only ever a memory; the kernel's mount table decides. Every reading compares the two, drops records of
mounts that are gone, and follows a mount that was moved.

Invariant: a record that :meth:`MountRecords.live` returns belongs to a mount that existed at that moment, as far as
this process can see. Of a mount that was made in another PID namespace, in a container that shares the store, it sees
nothing: its record is believed.

A file has the fields of :class:`MountRecord` by name; unknown ones are ignored. Records are not synced: the directory
lies in memory, and a record means nothing after a reboot.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import time
from dataclasses import dataclass
from types import NoneType
from typing import Any

from layerfs.errors import MountError, StoreReadOnly
from layerfs.formats.digest import Digest
from layerfs.linux.durable import write_document
from layerfs.linux.mountinfo import Holder, MountEntry, find_holders, read_mounts
from layerfs.linux.process import pid_namespace, sees_all_processes, start_of, wait_for_end
from layerfs.linux.safe_path import make_private

__all__ = ["MountRecord", "MountRecords", "identify"]

_SUFFIX = ".json"
#: Bytes of a record: two paths, and names.
_MAX_RECORD = 64 << 10
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
#: What the fields of a record may hold, by their annotation.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "str | None": (str, NoneType), "int | None": (int, NoneType),
}  # fmt: skip
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount that layerfs made.

    Attributes:
        id: 12 random hex digits.
        target: where it is mounted.
        mount_id: the kernel's number of the mount.
        device: ``MAJOR:MINOR`` of its file system; with ``mount_id`` it tells a mount from a later one.
        namespace: the mount namespace that it was made in, as /proc names it.
        boot_id: of the boot during which it was made.
        image_id: digest of the image's config, as text.
        image_name: the name under which the image was mounted, or None.
        container: name of the container whose upper is mounted, or None.
        backend: ``overlay`` or ``fuse``.
        read_only: whether nothing can be written through it.
        created: nanoseconds since the epoch.
        pid: the process that serves the mount, or None for a mount of the kernel.
        started: when that process was, as :func:`layerfs.linux.process.start_of` has it: numbers are used again.
        detached: whether it was unmounted lazily while in use: it is nowhere to be seen, but still written through.
        processes: the PID namespace that it was made in, as /proc names it.
        store: the store that it is of, as :func:`identify` has it: a copy of a store has copies of its records.
    """

    id: str
    target: str
    mount_id: int
    device: str
    namespace: str
    boot_id: str
    image_id: str
    image_name: str | None
    container: str | None
    backend: str
    read_only: bool
    created: int
    pid: int | None
    started: int | None = None
    detached: bool = False
    processes: str | None = None
    store: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it was made in this mount namespace."""
        return self.namespace == _namespace("self")

    @property
    def is_hidden(self) -> bool:
        """Whether it was made in a mount and a PID namespace of whose processes this one may see none."""
        return not self.is_here and not self._counts_alike and not sees_all_processes()

    @property
    def _counts_alike(self) -> bool:
        """Whether numbers of processes mean here what they meant where it was made."""
        return self.processes in {None, pid_namespace()}

    @property
    def is_dead(self) -> bool:
        """Whether the process that served the mount has ended. Known of mounts made in this mount namespace only."""
        return self.pid is not None and self.is_here and self._counts_alike and self.has_ended(0)

    def has_ended(self, seconds: float) -> bool:
        """Wait so long for the process that serves the mount, and return whether it has ended, or cannot be seen."""
        if self.pid is None or not self._counts_alike:
            return True
        return wait_for_end(self.pid, seconds, started=self.started)

    def neighbour(self) -> int | None:
        """Return a process that lives in the mount namespace of the mount, if one can be seen."""
        return next(iter(_processes_in(self.namespace)[0]), None)


class MountRecords:
    """The records below one directory. Thread-safe, and safe beside other processes: every file is written at once."""

    def __init__(self, directory: str | os.PathLike[str], store: str | None = None) -> None:
        """Name the directory; it is made with the first record.

        Args:
            directory: ``RUNROOT/mounts``.
            store: what :func:`identify` says of the store; records of other stores are passed over.
        """
        self.directory = os.fspath(directory)
        self._store = store

    def add(
        self,
        *,
        target: str | os.PathLike[str],
        mount_id: int,
        image_id: str,
        backend: str,
        read_only: bool,
        image_name: str | None = None,
        container: str | None = None,
        pid: int | None = None,
    ) -> MountRecord:
        """Record a mount that was just made.

        Args:
            target: where it is mounted; kept as an absolute path without symbolic links.
            mount_id: what the backend returned.
            image_id: digest of the image's config.
            backend: ``overlay`` or ``fuse``.
            read_only: whether nothing can be written through it.
            image_name: the name under which the image was mounted.
            container: name of the container whose upper is mounted.
            pid: the process that serves the mount, if there is one.

        Returns:
            The record.

        Raises:
            MountError: ENOENT if there is no such mount (any more).
            OSError: ENOSPC, EACCES, EROFS for the run root; no file is left then.
        """
        entry = next(iter(read_mounts(numbers=(mount_id,))), None)
        if entry is None:
            raise MountError(f"the mount at {os.fspath(target)} is gone", errno=errno.ENOENT, backend=backend)
        record = MountRecord(
            id=os.urandom(6).hex(),
            target=os.path.realpath(target),
            mount_id=mount_id,
            device=entry.device,
            namespace=_namespace("self"),
            boot_id=_boot_id(),
            image_id=image_id,
            image_name=image_name,
            container=container,
            backend=backend,
            read_only=read_only,
            created=time.time_ns(),
            pid=pid,
            started=None if pid is None else start_of(pid),
            processes=pid_namespace(),
            store=self._store,
        )
        self._write(record)
        return record

    def live(self) -> list[MountRecord]:
        """Return the records of mounts that exist, and remove the others.

        Returns:
            Records, oldest first, without mounts that were unmounted lazily. One of another mount namespace is kept
            while a process can be seen there that has the mount, or none can be seen.

        Raises:
            StoreReadOnly: no permission for the directory; a missing one is no error.

        Blocking: reads one small file per mount and the mount table; with a record of another namespace also one link
            per process.
        """
        known = self._known()
        if not known:
            return []
        mounts = {entry.mount_id: entry for entry in read_mounts(numbers={record.mount_id for record in known})}
        found: list[MountRecord] = []
        for record in known:
            current = record if record.detached and self._holders(record) else _current(record, mounts)
            if current is None:
                self.remove(record.id)
            elif not current.detached:
                found.append(current)
        return sorted(found, key=lambda record: (record.created, record.id))

    def require(self) -> None:
        """Refuse a directory that cannot be looked into, before anything is done that would have to be recorded.

        Raises:
            StoreReadOnly: no permission for it.
        """
        self._known()

    def detach(self, record: MountRecord) -> None:
        """Note that a mount was unmounted lazily; it is forgotten at once when nobody uses it.

        Raises:
            OSError: ENOSPC, EACCES, EROFS.
        """
        if not self._holders(record):
            self.remove(record.id)
            return
        self._write(dataclasses.replace(record, detached=True))

    def users(self, container: str) -> list[Holder]:
        """Return the processes that still use a container through a mount that was unmounted lazily.

        Blocking: looks at all processes, when there is such a mount.
        """
        return [
            holder
            for record in self._known()
            if record.detached and record.container == container
            for holder in self._holders(record)
        ]

    def find(self, name: str) -> MountRecord | None:
        """Return the record of a mount by container, by target or by its ID, in this order.

        Args:
            name: name of a container, path of a target, or ID of a record.

        Returns:
            The newest that matches, or None.

        Raises:
            OSError: as :meth:`live`.
        """
        records = self.live()[::-1]
        path = os.path.realpath(name)
        for matches in (
            [record for record in records if record.container == name],
            [record for record in records if path == record.target],
            [record for record in records if record.id == name],
        ):
            if matches:
                return next((record for record in matches if record.is_here), matches[0])
        return None

    def remove(self, record_id: str) -> None:
        """Forget a mount.

        Args:
            record_id: ID of its record; it is fine if it is gone.

        Raises:
            OSError: EACCES. Where nothing can be written it stays, and is passed over.
        """
        try:
            os.unlink(self._path(record_id))
        except (FileNotFoundError, IsADirectoryError):
            pass
        except OSError as error:
            if error.errno != errno.EROFS:
                raise

    def _path(self, record_id: str) -> str:
        """Return the path of a record."""
        return os.path.join(self.directory, record_id + _SUFFIX)

    def _write(self, record: MountRecord) -> None:
        make_private(os.path.dirname(self.directory))
        make_private(self.directory)
        data = json.dumps(dataclasses.asdict(record)).encode() + b"\n"
        write_document(self._path(record.id), data, sync=False)

    def _known(self) -> list[MountRecord]:
        """Return all records, without looking whether they are true; files that are none are removed."""
        try:
            names = [name for name in os.listdir(self.directory) if name.endswith(_SUFFIX) and name[0] != "."]
        except FileNotFoundError:
            return []
        except PermissionError as error:
            run = os.path.dirname(self.directory)
            raise StoreReadOnly(
                f"cannot look into the run root {run}: {error.strerror}", root=run,
                hint="Name another one with --runroot; for users it is $XDG_RUNTIME_DIR/layerfs.",
            ) from error  # fmt: skip
        records = []
        for name in names:
            record = self._read(name)
            if record is None:
                self.remove(name.removesuffix(_SUFFIX))
            elif self._store is None or record.store in {None, self._store}:
                records.append(record)
        return records

    def _holders(self, record: MountRecord) -> list[Holder]:
        """Return who uses a detached mount; nobody after a reboot, or when its number stands for another mount."""
        if record.boot_id != _boot_id() or read_mounts(numbers=(record.mount_id,)):
            return []
        holders = list(find_holders(record.mount_id))
        # The process that serves it ends with its last user, also with one that cannot be seen from here.
        if not holders and record.pid is not None and not record.has_ended(0):
            holders.append(Holder(record.pid, "layerfs", "file system"))
        return holders

    def _read(self, name: str) -> MountRecord | None:
        """Read a record; None for what is none, or is gone."""
        try:
            fd = os.open(os.path.join(self.directory, name), _READING)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
                raise
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return _parsed(name.removesuffix(_SUFFIX), os.read(fd, _MAX_RECORD))
        except (ValueError, TypeError, RecursionError):
            return None
        finally:
            os.close(fd)


def _parsed(identifier: str, raw: bytes) -> MountRecord:
    """Return the record that a file holds, which is called as the file is.

    Raises:
        ValueError, TypeError, RecursionError: it holds none.
    """
    document = dict(json.loads(raw))
    values: dict[str, Any] = {"id": identifier}
    for field in dataclasses.fields(MountRecord)[1:]:
        if field.name not in document and field.default is not dataclasses.MISSING:
            continue
        value = values[field.name] = document.get(field.name)
        if type(value) not in _KINDS[str(field.type)] or (type(value) is int and not 0 <= value < 1 << 63):
            raise ValueError(f"no {field.name}")
    record = MountRecord(**values)
    Digest.parse(record.image_id)
    if record.pid is not None and not 0 < record.pid < 1 << 31:
        raise ValueError("no process")
    return record


def _current(record: MountRecord, mounts: dict[int, MountEntry]) -> MountRecord | None:
    """Return the record as it is true now, or None if its mount is gone."""
    if record.boot_id != _boot_id():
        return None
    if not record.is_here:
        return record if record.is_hidden or _lives_elsewhere(record) else None
    entry = mounts.get(record.mount_id)
    if entry is None or entry.device != record.device:
        return None
    return record if entry.target == record.target else dataclasses.replace(record, target=entry.target)


def _boot_id() -> str:
    """Return the kernel's name of this boot."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def _namespace(pid: str) -> str:
    """Return the name of a process's mount namespace."""
    return os.readlink(f"/proc/{pid}/ns/mnt")


def _lives_elsewhere(record: MountRecord) -> bool:
    """Return whether the mount namespace of a mount still has it, as far as that can be seen."""
    processes, unseen = _processes_in(record.namespace)
    # The number of a namespace that has ended is given to another one; and who has changed his root sees less of his.
    for process in processes:
        try:
            if any(entry.device == record.device for entry in read_mounts(process, numbers=(record.mount_id,))):
                return True
        except OSError:
            unseen = True
    return unseen


def _processes_in(namespace: str) -> tuple[list[int], bool]:
    """Return the processes in a mount namespace, and whether there may be others.

    For an unprivileged user, every process that may not be looked at may be in it. For root those are the few that have
    capabilities which this process lacks, such as the init of a sandbox, and they would keep records for ever.
    """
    root = os.geteuid() == 0
    found, unseen = [], False
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                if _namespace(pid) == namespace:
                    found.append(int(pid))
            except PermissionError:
                unseen = unseen or not root
            except OSError:
                continue
    return found, unseen


def identify(root: str | os.PathLike[str]) -> str:
    """Return what tells a store from its copies, also when it is moved.

    Raises:
        OSError: it cannot be looked at.
    """
    status = os.stat(root)
    return f"{status.st_dev}:{status.st_ino}"
