"""Taking a mount away, and saying who keeps it when that does not work."""

from __future__ import annotations

import errno
import os
from itertools import islice

from layerfs.errors import MountError
from layerfs.linux.mount_api import umount
from layerfs.linux.mountinfo import MountEntry, find_holders, find_mount, read_mounts
from layerfs.linux.probe import privilege_hint
from layerfs.mount.fuse.start import unmount_by_helper

__all__ = ["unmount"]

#: Processes named in one message; more would hide the first.
_NAMED = 5


def unmount(target: str | os.PathLike[str], *, mount_id: int | None = None, lazy: bool = False) -> None:
    """Detach the mount at a path.

    Args:
        target: where it is mounted.
        mount_id: the number of the mount that is meant; another mount on top of it is then refused, not taken.
        lazy: detach at once even while in use. The mount vanishes for everybody, but goes on working for those who
            use it, so the same upper directory must not be mounted again before they end.

    Raises:
        MountError: EBUSY with the processes and mounts that hold it, EINVAL if nothing is mounted there, EPERM.

    Blocking: overlayfs writes back what was changed: seconds after large writes.
    Atomicity: the mount is there or not; what overlayfs was given is on disk when the function returns, unless lazy.
    """
    path = os.fspath(target)
    entry = find_mount(path) if mount_id is not None else None
    if mount_id is not None and entry is not None and entry.mount_id != mount_id:
        raise MountError(
            f"{path} is covered by another mount of type {entry.fstype}",
            errno=errno.EBUSY,
            hint=f"unmount what lies on top of {path} first",
        )
    try:
        umount(path, lazy=lazy)
    except OSError as err:
        if err.errno == errno.EPERM:
            mounted = entry or find_mount(path)
            if mounted is not None and mounted.fstype.startswith("fuse"):
                unmount_by_helper(mounted.target, lazy=lazy)
                return
        if err.errno == errno.EBUSY:
            raise _busy(path, entry or find_mount(path), err) from err
        text = {
            errno.EINVAL: "nothing is mounted there",
            errno.EPERM: f"user {os.geteuid()} lacks CAP_SYS_ADMIN",
        }.get(err.errno or 0, err.strerror)
        hint = privilege_hint() if err.errno == errno.EPERM else None
        raise MountError(f"cannot unmount {path}: {text}", errno=err.errno, hint=hint) from err


def _busy(path: str, entry: MountEntry | None, err: OSError) -> MountError:
    """Make the error that names the holders."""
    holders: list[str] = []
    if entry is not None:
        holders += [f"mount {other.target}" for other in read_mounts() if other.parent_id == entry.mount_id]
        # Not this process for its working directory: that is a shell's inside the mount, which is named itself.
        own = (os.getpid(), "working directory")
        others = (holder for holder in find_holders(entry.mount_id) if (holder.pid, holder.use) != own)
        holders += [str(holder) for holder in islice(others, _NAMED)]
    used = ", ".join(holders) or "a process that cannot be seen from here"
    return MountError(
        f"cannot unmount {path}: in use by {used}", errno=err.errno, hint="end the users, or unmount with --lazy"
    )
