"""Containers and mounts."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from layerfs.api.base import STORE_ERRORS, StorePart, StrPath
from layerfs.api.callback import callbacks
from layerfs.errors import Conflict, InvalidReference, LayerfsError, MountError, NotFound
from layerfs.formats.digest import Digest
from layerfs.store import image as catalog
from layerfs.store.snapshot import Snapshot, create_snapshot, find_snapshot, list_snapshots, remove_snapshot

if TYPE_CHECKING:
    from layerfs.mount.option import MountOptions
    from layerfs.mount.record import MountRecord
    from layerfs.values import Container, Image, Mount

__all__ = ["ContainerPart"]

_WITH_RUNROOT = "--runroot names a place for what is mounted."
_ON_READ_ONLY = f"Mount an image alone, with --read-only; {_WITH_RUNROOT}"


class ContainerPart(StorePart):
    """Mounting images, with and without a writable layer on top."""

    def containers(self) -> list[Container]:
        """Return all containers, newest first."""
        mounts = {record.container: record for record in self._records().live()}
        return [self._container(snapshot, mounts.get(snapshot.name)) for snapshot in list_snapshots(self._handle)]

    def container(self, name: str) -> Container:
        """Return the container of a name, an ID or the beginning of an ID.

        Raises:
            NotFound: there is none.
        """
        snapshot = find_snapshot(self._handle, name)
        mounts = {record.container: record for record in self._records().live()}
        return self._container(snapshot, mounts.get(snapshot.name))

    def mount(
        self,
        image: str | Image | None,
        target: StrPath | None = None,
        *,
        name: str | None = None,
        read_only: bool = False,
        backend: str = "auto",
        lower: str = "auto",
        options: MountOptions | None = None,
        check: Callable[[], None] | None = None,
    ) -> Mount:
        """Mount an image, with a container's writable layer on top unless ``read_only``.

        Args:
            image: what to mount; None only with the ``name`` of a container that exists.
            target: an existing directory; None makes one below the runroot, named after the container or image.
            name: of the container: one that exists goes on where it was, else it is made. None makes one with a new
                name. Not with ``read_only``.
            read_only: mount the image alone.
            backend: ``auto``, ``overlay`` or ``fuse``.
            lower: ``auto``, ``erofs``, or ``dirs`` to unpack the layers to directories first.
            options: nosuid, nodev and so on.
            check: polled while layers are unpacked.

        Raises:
            NotFound: no such image.
            InvalidReference: no such backend or lower, or a name that is none.
            Conflict: the container is mounted, or belongs to another image, or the target is in use.
            BackendUnavailable: no backend works here; says why for each.
            MountError: the target is no directory, or a step failed.
            IntegrityError: the image is damaged.
            StoreError: the store cannot be written to, for a container or for unpacked layers.

        Atomicity: when it fails nothing is mounted, and a container that was made for it is gone.
        """
        if read_only and name is not None:
            raise InvalidReference("a read-only mount has no container, so it takes no name")
        snapshot, made = None, False
        if name is not None:
            snapshot = self._existing(name)
            if image is not None and snapshot is not None and snapshot.name != name:
                snapshot = None  # a name for a new container may look like the beginning of another one's ID
        if image is None:
            if snapshot is None:
                raise NotFound("container", name or "", hint="Name an image to make it from.")
            record = catalog.find_image(self._handle, str(snapshot.image))
        else:
            record = self._record(image)
            if snapshot is not None and snapshot.image != record.digest:
                raise Conflict(
                    f"container {snapshot.name} belongs to image {snapshot.image.short}, not {record.digest.short}",
                    reason="exists", hint="Choose another name, or remove it with: layerfs rm " + snapshot.name,
                )  # fmt: skip
        from layerfs.mount.fuse.start import clear_dead
        from layerfs.mount.image import mount_image
        from layerfs.mount.in_use import refuse_mounted
        from layerfs.mount.mounted import container_lock, records_of

        if target is not None:
            clear_dead(target)
        if target is not None and not os.path.isdir(target):
            if os.path.lexists(target):
                raise MountError(f"target {os.fspath(target)} is not a directory")
            raise MountError(f"target {os.fspath(target)} does not exist", hint="Make it first with: mkdir -p")
        with callbacks() as own_functions, self._writing("mount", hint=_WITH_RUNROOT if read_only else _ON_READ_ONLY):
            check = own_functions.check(check)
            if snapshot is None and not read_only:
                records_of(self._handle).require()
                snapshot, made = create_snapshot(self._handle, record, name), True
            place, own = target or "", False
            try:
                if target is None:
                    place, own = self._own_target(record, snapshot)
                mounted = mount_image(
                    self._handle, record, place, snapshot=snapshot, read_only=read_only, backend=backend, lower=lower,
                    options=options, check=check,
                )  # fmt: skip
            except BaseException:
                # What cannot be cleaned up must not hide what went wrong.
                if made and snapshot is not None:
                    with contextlib.suppress(LayerfsError, OSError), container_lock(self._handle, snapshot):
                        refuse_mounted(self._handle, snapshot)
                        remove_snapshot(self._handle, snapshot)
                if own:
                    with contextlib.suppress(OSError):
                        os.rmdir(place)
                raise
            return _mount(mounted)

    def umount(self, target_or_name: StrPath, *, lazy: bool = False) -> Mount:
        """Unmount a container or image, by target, container name or ID, image name, or ID of the mount.

        Raises:
            NotFound: nothing of layerfs is mounted there.
            Conflict: the image is mounted more than once.
            MountError: it is in use; the message says by whom.
            OSError: EIO, ENOSPC: what was written did not reach the disk.
        """
        wanted = os.fspath(target_or_name)
        record = self._records().find(wanted)
        if record is None:
            record = self._mounted_as(wanted)
        from layerfs.mount.image import unmount_record

        unmount_record(self._handle, record, lazy=lazy)
        if os.path.dirname(record.target) == os.path.realpath(self._targets()):
            with contextlib.suppress(OSError):  # what somebody has put below the mount stays
                os.rmdir(record.target)
        return _mount(record)

    def mounts(self) -> list[Mount]:
        """Return the mounts that exist, oldest first; records of mounts that are gone are dropped on the way."""
        return [_mount(record) for record in self._records().live()]

    def remove_container(self, name: str, *, force: bool = False) -> Container:
        """Remove a container and all that was written in it.

        Args:
            name: its name, ID or the beginning of its ID.
            force: unmount it first.

        Raises:
            NotFound: no such container.
            Conflict: it is mounted, or was unmounted lazily and is still in use.
            MountError: with ``force``, it is in use and cannot be unmounted.
            StoreError: the store cannot be written to.
        """
        from layerfs.mount.in_use import refuse_mounted
        from layerfs.mount.mounted import container_lock

        snapshot = find_snapshot(self._handle, name)
        with self._writing("rm"), ExitStack() as stack:
            try:
                stack.enter_context(container_lock(self._handle, snapshot))
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise
                self._handle.database.make_room()  # for the lock
                stack.enter_context(container_lock(self._handle, snapshot))
            if force:
                for record in self._records().live():
                    if record.container == snapshot.name and not record.is_hidden:
                        with contextlib.suppress(NotFound):  # somebody else was quicker
                            self.umount(record.id)
            refuse_mounted(self._handle, snapshot)
            removed = self._container(snapshot, None)
            remove_snapshot(self._handle, snapshot)
        return removed

    def _targets(self) -> str:
        return os.path.join(self._handle.layout.runroot, "targets")

    def _own_target(self, record: catalog.ImageRecord, snapshot: Snapshot | None) -> tuple[str, bool]:
        place = os.path.join(self._targets(), snapshot.name if snapshot is not None else record.digest.short)
        from layerfs.linux.safe_path import make_private

        try:
            make_private(self._handle.layout.runroot)
            make_private(self._targets())
            os.mkdir(place, 0o755)
        except FileExistsError:
            return place, False
        except OSError as error:
            if error.errno in STORE_ERRORS:
                raise
            raise MountError(f"cannot make {place} to mount on: {error.strerror}", errno=error.errno) from error
        return place, True

    def _mounted_as(self, text: str) -> MountRecord:
        """Find a mount by the container or image that a shorter or familiar name means."""
        live = self._records().live()[::-1]
        snapshot = self._existing(text)
        if snapshot is not None:
            for record in live:
                if record.container == snapshot.name:
                    return record
            raise NotFound("mount of container", text)
        try:
            image = catalog.find_image(self._handle, text)
        except (NotFound, InvalidReference):
            raise NotFound("mount", text, hint="List what is mounted with: layerfs mount") from None
        found = [record for record in live if record.image_id == str(image.digest)]
        if len(found) > 1:
            places = ", ".join(record.target for record in found)
            raise Conflict(f"{text} is mounted {len(found)} times: {places}", reason="ambiguous")
        if not found:
            raise NotFound("mount of image", text, hint="List what is mounted with: layerfs mount")
        return found[0]


def _mount(record: MountRecord) -> Mount:
    from layerfs.values import Mount

    return Mount(
        record.id, record.target, Digest.parse(record.image_id), record.image_name, record.container, record.backend,
        record.read_only, record.created, record.pid, record.is_hidden,
    )  # fmt: skip
