"""Mounting images of a store: alone, or below a container's writable layer; and taking the mounts away again."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from layerfs.errors import BackendUnavailable, Conflict, FormatError, IntegrityError, MountError, NotFound
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.whiteout import OVERRIDE_XATTR
from layerfs.linux.durable import sync_filesystem
from layerfs.linux.mountinfo import MountEntry, find_mount, read_mounts
from layerfs.linux.probe import feature
from layerfs.linux.process import may_give_away
from layerfs.linux.safe_path import make_private
from layerfs.mount.choose import BackendStatus, choose_backend
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.mount.fuse.start import clear_dead, is_dead, start_fuse
from layerfs.mount.in_use import refuse_mounted, wait_until_free
from layerfs.mount.mounted import (
    container_lock,
    only_one,
    records_of,
    target_lock,
)
from layerfs.mount.option import MountOptions
from layerfs.mount.overlay import mount_directories, mount_merged, refuse_file_system
from layerfs.mount.record import MountRecord, MountRecords
from layerfs.mount.unmount import unmount
from layerfs.mount.unpack import apply_attributes
from layerfs.mount.unpacked import unpacked_directories
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_names, merged_tree
from layerfs.store.layer import device_paths, map_tree
from layerfs.store.snapshot import (
    Snapshot,
    is_dressed,
    keeps_owners,
    mark_dressed,
    refuse_other_owners,
    require_directories,
)

__all__ = ["dressed_upper", "mount_image", "unmount_record"]

StrPath = str | os.PathLike[str]

#: Seconds that an unmounted FUSE process gets to close its files.
_PATIENCE = 10.0

#: What mounts of layerfs are to the kernel.
_FSTYPES = ("erofs", "overlay", "fuse.layerfs")

#: How often a mount is made whose tree was written anew meanwhile.
_TRIES = 5


def mount_image(
    handle: StoreHandle,
    image: ImageRecord,
    target: StrPath,
    *,
    snapshot: Snapshot | None = None,
    read_only: bool = False,
    backend: str = "auto",
    lower: str = "auto",
    options: MountOptions | None = None,
    check: Callable[[], None] | None = None,
) -> MountRecord:
    """Mount an image and record it.

    Args:
        handle: the store.
        image: what to mount.
        target: an existing directory.
        snapshot: the container whose writable layer goes on top; None needs ``read_only``.
        read_only: whether nothing may be written through the mount.
        backend: ``auto``, ``overlay`` or ``fuse``.
        lower: ``auto``, ``erofs``, or ``dirs`` to unpack the layers first.
        options: how the mount behaves.
        check: polled while layers are unpacked.

    Raises:
        Conflict: the container is mounted already, or something of layerfs is mounted at the target.
        BackendUnavailable: no backend works here.
        MountError: a step failed.
        IntegrityError: the image is damaged, or the container.

    Atomicity: nothing is left mounted when it fails.
    """
    status = choose_backend(backend, lower)
    records = records_of(handle)
    place = os.path.realpath(target)
    # What a killed process left there would be in the way, whatever mounts now.
    clear_dead(place)
    _refuse_place(handle, place)
    with only_one(target_lock(handle, place)), container_lock(handle, snapshot):
        covered = _refuse_taken(records, place)
        if snapshot is not None:
            refuse_mounted(handle, snapshot)
            require_directories(handle, snapshot)
            refuse_other_owners(handle.layout.upper(snapshot.id))
        upper = work = None
        if snapshot is not None:
            upper, work = handle.layout.upper(snapshot.id), handle.layout.work(snapshot.id)
        tree = merged_tree(handle, image)
        if upper is not None:
            _dress_root(upper, tree)
        chosen = options or MountOptions()
        make = functools.partial(
            _mount, handle, image, tree, place, upper, work, chosen, read_only=read_only, check=check
        )
        names = image_names(handle, image)
        with _unmounted_on_failure(place, covered, upper):
            try:
                mount_id, pid = make(status)
            except BackendUnavailable as error:
                # What the kernel can do, it may not do on the file system of this store.
                reason = next(iter(error.reasons.values()), str(error))
                tried = [replace(status, usable=False, reason=reason)]
                if "overlay (lower=dirs)" in error.reasons:  # which would fail in the same way
                    tried = [replace(tried[0], lower=kind) for kind in ("erofs", "dirs")]
                status = choose_backend(backend, lower, tried=tried)
                mount_id, pid = make(status)
            return records.add(
                target=place, mount_id=mount_id, image_id=str(image.digest), image_name=names[0] if names else None,
                container=snapshot.name if snapshot is not None else None, backend=status.backend,
                read_only=read_only, pid=pid,
            )  # fmt: skip


@contextlib.contextmanager
def _unmounted_on_failure(place: str, covered: MountEntry | None, upper: str | None) -> Iterator[None]:
    """Take away what the block has mounted at a place if it fails: a mount that nobody knows of is hard to find again.

    Whatever fails, a signal included, and at any moment: so the kernel is asked what is there.

    Args:
        place: the target.
        covered: what was mounted there before, which stays.
        upper: what is written to, which nobody uses any more when this ends.
    """
    try:
        yield
    except BaseException:
        # Lazily, because what failed may fail here too.
        with contextlib.suppress(OSError):
            after = find_mount(place)
            known = covered.mount_id if covered is not None else None
            if after is not None and after.fstype in _FSTYPES and after.mount_id != known:
                unmount(place, mount_id=after.mount_id, lazy=True)
            if upper is not None:
                wait_until_free(upper, _PATIENCE)
        raise


def _mount(
    handle: StoreHandle,
    image: ImageRecord,
    tree: Tree,
    place: str,
    upper: str | None,
    work: str | None,
    options: MountOptions,
    status: BackendStatus,
    *,
    read_only: bool,
    check: Callable[[], None] | None,
) -> tuple[int, int | None]:
    """Mount in one way; return the kernel's number of the mount, and the process that serves it, if one does."""
    if status.lower == "dirs":
        if upper is not None:
            refuse_file_system(upper, f"mount at {place}")  # before anything is unpacked
        lowers = unpacked_directories(handle, image, tree, check)
        number = mount_directories(
            lowers, place, upper=upper, work=work, read_only=read_only, options=options,
            # The topmost layer need not have an entry for the root.
            prepare_root=None if upper is not None else lambda fd: apply_attributes(fd, tree, tree.root),
        )  # fmt: skip
        return number, None
    path = handle.layout.merged_tree(image.chain_id)
    for _ in range(_TRIES):
        with handle.trees_kept():
            tree, identity = _open_merged(handle, image, path)
            devices = device_paths(handle, tree)
            check_devices = functools.partial(_check_devices, tree, devices)
            if status.backend == "fuse":
                check_devices()
                specification = _specification(handle, image, devices, place, upper, work, options, read_only=read_only)
                number, pid = start_fuse(specification, log=_log(handle))
            else:
                number, pid = mount_merged(
                    path, devices, place, upper=upper, work=work, read_only=read_only, options=options,
                    check=check_devices,
                ), None  # fmt: skip
            if _identity(os.stat(path)) == identity:
                return number, pid
        # A load has healed a layer and written the tree anew meanwhile, and it may name other layers.
        unmount(place, mount_id=number, lazy=True)
    raise MountError(f"the tree of image {image.digest.short} is written again and again", hint="Try again.")


def _open_merged(handle: StoreHandle, image: ImageRecord, path: str) -> tuple[Tree, tuple[int, ...]]:
    """Return the merged tree that has its name now, and by what its file is told from others."""
    try:
        return _map(path)
    except (FileNotFoundError, FormatError):
        merged_tree(handle, image)  # makes it again
        return _map(path)


def _map(path: str) -> tuple[Tree, tuple[int, ...]]:
    with open(path, "rb", buffering=0) as file:
        return map_tree(file.fileno()), _identity(os.fstat(file.fileno()))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_ctime_ns


@contextlib.contextmanager
def dressed_upper(handle: StoreHandle, snapshot: Snapshot, tree: Tree) -> Iterator[str]:
    """Return the writable layer of a container, to be written to while nobody can mount it.

    Args:
        handle: the store.
        snapshot: the container.
        tree: the merged tree of its image.

    Raises:
        Conflict: it is mounted, or still in use.
    """
    with container_lock(handle, snapshot):
        refuse_mounted(handle, snapshot)
        upper = handle.layout.upper(snapshot.id)
        refuse_other_owners(upper)
        _dress_root(upper, tree)
        yield upper


def unmount_record(handle: StoreHandle, record: MountRecord, *, lazy: bool = False) -> None:
    """Unmount what a record describes, and drop the record.

    Raises:
        MountError: EBUSY with who holds it.
        NotFound: somebody else was quicker.
        OSError: EIO, ENOSPC if what was written could not be made durable.

    Blocking: waits for the process of a FUSE mount to close its files. Unless ``lazy``, and with a store that syncs,
    what was written to the container is durable then: overlayfs sees to that by itself (fs/overlayfs/super.c,
    ovl_sync_fs), for a FUSE mount the file system of the store is synced.
    """
    if record.is_hidden and lazy:
        records_of(handle).remove(record.id)  # it may have ended with its container, or lives on where nobody sees it
        return
    if not record.is_here:
        raise _elsewhere(record)
    if is_dead(record.target):
        clear_dead(record.target)
    else:
        try:
            unmount(record.target, mount_id=record.mount_id, lazy=lazy)
        except MountError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT} and not list(read_mounts(numbers=[record.mount_id])):
                raise NotFound("mount", record.target, hint="Somebody else has just unmounted it.") from error
            raise
    if lazy and record.container is not None:
        records_of(handle).detach(record)
    else:
        records_of(handle).remove(record.id)
    if not lazy and not record.has_ended(_PATIENCE):
        also = [entry.target for entry in read_mounts(fstype="fuse.layerfs") if entry.device == record.device]
        raise MountError(
            f"{record.target} is unmounted, but process {record.pid} that served it goes on", backend=record.backend,
            hint=f"It is mounted at {', '.join(also)} too." if also else None,
        )  # fmt: skip
    if record.pid is not None and not record.read_only and not lazy:
        fd = os.open(handle.layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(fd, sync=handle.sync)
        finally:
            os.close(fd)


def _elsewhere(record: MountRecord) -> MountError:
    """Make the error for a mount that this mount namespace does not have, though it may have one there, too."""
    neighbour = record.neighbour()
    whose, hint = ", whose processes cannot be seen from here", "Unmount it there."
    if neighbour is not None:
        whose = f", that of process {neighbour}"
        hint = f"Unmount it there: nsenter --mount --target {neighbour} umount {record.target}"
    elif record.is_hidden:
        hint = f"Unmount it there; or, if its container was killed: layerfs umount --lazy {record.id}"
    return MountError(
        f"{record.target} is mounted in another mount namespace{whose}", errno=errno.EINVAL, backend=record.backend,
        hint=hint,
    )  # fmt: skip


def _specification(
    handle: StoreHandle,
    image: ImageRecord,
    devices: Sequence[str],
    place: str,
    upper: str | None,
    work: str | None,
    options: MountOptions,
    *,
    read_only: bool,
) -> FuseSpecification:
    """Say what the FUSE process is to serve."""
    return FuseSpecification(
        target=place, source=options.source, tree=handle.layout.merged_tree(image.chain_id), devices=tuple(devices),
        upper=upper, work=work, read_only=read_only, nosuid=options.nosuid, nodev=options.nodev, noexec=options.noexec,
        # As a mount of the kernel; for users, fuse.conf decides what they may share.
        allow_other=feature("privilege").usable, userxattr=options.userxattr or None,
        override=os.fsdecode(OVERRIDE_XATTR) if upper is not None and keeps_owners(upper) else None,
        pyfuse3=options.pyfuse3,
    )  # fmt: skip


def _log(handle: StoreHandle) -> str:
    """Return the file that FUSE processes write to when something is wrong."""
    make_private(handle.layout.runroot)
    return os.path.join(handle.layout.runroot, "fuse.log")


def _refuse_place(handle: StoreHandle, place: str) -> None:
    """Refuse a target that would cover the store or the kernel's tables, or lie among the store's files."""
    for kept in ("/proc", "/sys", "/dev"):
        if os.path.commonpath((kept, place)) == kept:
            raise MountError(f"target {place} lies in {kept}, which mounting itself needs")
    own = os.path.join(handle.layout.runroot, "targets", "")
    for what, root in (("store", handle.layout.root), ("run root", handle.layout.runroot)):
        kept = os.path.realpath(root)
        if os.path.commonpath((kept, place)) in (kept, place) and not place.startswith(os.path.realpath(own) + os.sep):
            relation = "is" if place == kept else "would cover" if kept.startswith(place) else "lies in"
            raise MountError(f"target {place} {relation} the {what} {kept}", hint="Choose a directory outside of it.")


def _refuse_taken(records: MountRecords, place: str) -> MountEntry | None:
    """Refuse a target where layerfs has mounted something; return what anybody else has."""
    for record in records.live():
        if record.target == place and record.is_here:
            what = record.container or record.image_name or record.image_id
            raise Conflict(
                f"{what} is mounted at {place}", reason="mounted", hint=f"Unmount it first with: layerfs umount {place}"
            )
    entry = find_mount(place)
    if entry is not None and entry.fstype in ("erofs", "overlay"):
        raise Conflict(
            f"{entry.fstype} is mounted at {place} already", reason="mounted",
            hint="Choose another directory, or unmount what is there first.",
        )  # fmt: skip
    return entry


def _dress_root(upper: str, tree: Tree) -> None:
    """Give a new, empty upper directory the attributes of the image's root: the mount's root is the upper one."""
    if is_dressed(upper):
        return
    override = None if may_give_away() else OVERRIDE_XATTR
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        apply_attributes(fd, tree, tree.root, override=override)
    finally:
        os.close(fd)
    mark_dressed(upper, keeps_owners=override is not None)


def _check_devices(tree: Tree, devices: Sequence[str]) -> None:
    """Refuse to mount over a layer that is gone or cut short: reads would fail, or return nothing, much later."""
    path = ""  # until the first one is looked at
    try:
        for slot, path in zip(tree.devices, devices, strict=True):
            size = os.stat(path).st_size
            if size + 511 < slot.blocks * 512:
                raise IntegrityError(f"layer file {path} is cut short at {size} bytes", hint="Load the image again.")
    except FileNotFoundError as error:
        raise IntegrityError(f"layer file {path} is missing", hint="Load the image again.") from error
