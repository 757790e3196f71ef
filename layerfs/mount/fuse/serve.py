"""The life of a process that serves one FUSE mount: union, mount, readiness, loop, end.

The process mounts by itself where it may, and through fusermount3 where it may not. A signal detaches the mount and
lets those who still use it go on; a second one ends the process at once. When the process is killed its mount stays,
and answers ENOTCONN: an empty directory in its place could make a backup program delete the backup.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import stat
import subprocess
from collections.abc import Callable

import pyfuse3
import trio

from layerfs.linux.mount_api import legacy_mount, umount
from layerfs.linux.mountinfo import find_upper_mount, read_mounts
from layerfs.linux.probe import feature
from layerfs.mount.fuse.loop import run
from layerfs.mount.fuse.operations import UnionOperations
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.store.layer import open_tree
from layerfs.union.image import ImageLower
from layerfs.union.lower import Lower
from layerfs.union.mark import TRUSTED_PREFIX, USER_PREFIX
from layerfs.union.owner import OwnerMap
from layerfs.union.stack import StackLower
from layerfs.union.union import Union
from layerfs.union.upper import Upper

__all__ = ["serve"]

_log = logging.getLogger(__name__)

#: MS_* of sys/mount.h; the last one hands the umask through, so that default ACLs can take its place.
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _POSIXACL = 1, 2, 4, 8, 1 << 16
#: Kilobytes that the kernel reads ahead; its default of 128 makes eight requests of a mebibyte.
_READ_AHEAD = 1024


def serve(wanted: FuseSpecification, ready: Callable[[], None], *, notify_socket: str | None = None) -> None:
    """Mount and serve until unmounted.

    Args:
        wanted: what is to be mounted.
        ready: called once, when the mount works.
        notify_socket: where systemd waits to be told so, or None.

    Raises:
        OSError: a directory cannot be used, or the mount was refused.
        FormatError: the tree is damaged.

    Blocking: for the life of the mount.
    """
    _raise_descriptor_limit()
    os.umask(0)
    mounts_itself = feature("privilege").usable
    union = _union(wanted, raw_umask=mounts_itself and wanted.acl)
    try:
        operations = UnionOperations(union, timeout=wanted.timeout, acl=wanted.acl)
        options = set()
        fd = -1
        if mounts_itself:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            place = f"/dev/fd/{fd}"
            _mount(wanted, fd)
        else:
            place, options = wanted.target, _helper_options(wanted)
        try:
            pyfuse3.init(operations, place, options)
        except RuntimeError as error:
            raise OSError(errno.EPERM, f"libfuse refused the mount: {error}") from None
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise

        def started() -> None:
            _raise_read_ahead(wanted.target)
            # What was made so far lives as long as the mount; looking through it again and again finds nothing.
            gc.freeze()
            ready()
            _notify(notify_socket, b"READY=1")

        async def ending(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await _wait_for_signal(wanted.target, task_status, mounts_itself=mounts_itself)

        try:
            trio.run(run, started, ending)
        finally:
            _notify(notify_socket, b"STOPPING=1")
            pyfuse3.close(unmount=False)
    finally:
        union.close()


def _union(wanted: FuseSpecification, *, raw_umask: bool) -> Union:
    """Make the union."""
    userxattr = wanted.userxattr
    if userxattr is None:
        userxattr = not feature("trusted-xattrs").usable
    prefix = USER_PREFIX if userxattr else TRUSTED_PREFIX
    with contextlib.ExitStack() as stack:
        upper = None
        if wanted.upper is not None and wanted.work is not None:
            if find_upper_mount(wanted.upper) is not None:
                raise OSError(errno.EBUSY, "upper directory is mounted by the kernel", wanted.upper)
            upper = Upper(wanted.upper, wanted.work, prefix)
            stack.callback(upper.close)
        lower: Lower
        if wanted.tree is not None:
            lower = ImageLower(open_tree(wanted.tree), wanted.devices)
        else:
            lower = StackLower(wanted.lowers, prefix, device=None if upper is None else upper.device)
        owners = wanted.owners
        if owners is None and os.geteuid() != 0:
            # An ordinary user can only ever own files; root of the image is whoever mounts it.
            owners = OwnerMap(uid=os.geteuid(), gid=os.getegid())
        union = Union(
            lower, upper, owners=owners, raw_umask=raw_umask, static_nlink=wanted.static_nlink, prefix=prefix,
            sync=wanted.sync,
        )  # fmt: skip
        stack.pop_all()
    return union


def _mount(wanted: FuseSpecification, fd: int) -> None:
    """Mount with the privileges of this process."""
    flags = 0
    for on, flag in (
        (wanted.read_only, _RDONLY), (wanted.nosuid, _NOSUID), (wanted.nodev, _NODEV), (wanted.noexec, _NOEXEC),
        (wanted.acl, _POSIXACL),
    ):  # fmt: skip
        if on:
            flags |= flag
    mode = stat.S_IFDIR | 0o755
    words = [f"fd={fd}", f"rootmode={mode:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}",
             "default_permissions"]  # fmt: skip
    if wanted.allow_other:
        words.append("allow_other")
    legacy_mount(wanted.source, wanted.target, "fuse.layerfs", flags, ",".join(words))


def _helper_options(wanted: FuseSpecification) -> set[str]:
    """Return the options for fusermount3, which mounts nosuid and nodev for users whatever is asked."""
    source = wanted.source.replace("\\", "\\\\").replace(",", "\\,")
    words = {f"fsname={source}", "subtype=layerfs", "default_permissions"}
    for on, word in (
        (wanted.read_only, "ro"), (wanted.noexec, "noexec"), (wanted.allow_other, "allow_other"),
    ):  # fmt: skip
        if on:
            words.add(word)
    return words


async def _wait_for_signal(target: str, status: trio.TaskStatus[None], *, mounts_itself: bool) -> None:
    """Detach the mount at the first signal, end at the second."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        status.started()
        detached = False
        async for _ in signals:
            if detached:
                pyfuse3.terminate()
                return
            detached = True
            # In a thread: taking it away may make the kernel write, which this process has to serve.
            if not await trio.to_thread.run_sync(_detach, target, mounts_itself):
                pyfuse3.terminate()
                return


def _detach(target: str, mounts_itself: bool) -> bool:  # noqa: FBT001 - run_sync passes by position
    """Take the mount out of the tree; who is inside can go on."""
    try:
        if mounts_itself:
            umount(target, lazy=True)
        else:
            subprocess.run(["fusermount3", "-u", "-z", "-q", "--", target], check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        _log.warning("cannot unmount %s: %s", target, error)
        return False
    return True


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as may be had: each open file needs one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _raise_read_ahead(target: str) -> None:
    """Let the kernel read ahead as much as one request can carry; only root may."""
    with contextlib.suppress(OSError):
        # Not find_mount: that would ask this very process about the path.
        entry = next((entry for entry in reversed(read_mounts()) if entry.target == target), None)
        if entry is not None:
            with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w", encoding="ascii") as file:
                file.write(str(_READ_AHEAD))


def _notify(address: str | None, message: bytes) -> None:
    """Tell systemd."""
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect("\0" + address[1:] if address[0] == "@" else address)
        connection.send(message)
