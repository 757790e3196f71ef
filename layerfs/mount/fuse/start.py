"""Starting the process that serves a FUSE mount, and waiting until the mount works or it says why not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace

from layerfs.errors import BackendUnavailable, MountError
from layerfs.linux.mount_api import umount
from layerfs.linux.mountinfo import read_mounts
from layerfs.mount.choose import fuse_status
from layerfs.mount.fuse.specification import FuseSpecification

__all__ = ["clear_dead", "is_dead", "start_fuse", "unmount_by_helper"]

_BACKEND = "fuse"
#: The type that mounts of layerfs have in the mount table.
_FSTYPE = "fuse.layerfs"


def start_fuse(wanted: FuseSpecification, *, log: str | None = None) -> tuple[int, int]:
    """Mount through FUSE.

    Args:
        wanted: what to mount.
        log: file for what the serving process has to say while it runs, or None.

    Returns:
        The kernel's number of the mount, and the pid of the process that serves it.

    Raises:
        BackendUnavailable: FUSE cannot be used here.
        MountError: a step failed; the message says which.

    Blocking: until the mount works, 0.2 s: a Python starts.
    Atomicity: nothing is mounted when it fails.
    """
    status = fuse_status()
    if not status.usable:
        raise BackendUnavailable(
            f"backend fuse does not work here: {status.reason}", reasons={_BACKEND: status.reason}
        )  # fmt: skip
    wanted = replace(wanted, target=os.path.realpath(wanted.target))
    source = text = answer = ready = -1
    try:
        source, text = _pipe()
        answer, ready = _pipe()
        command = [sys.executable, "-P", "-m", "layerfs.mount.fuse.daemon", str(source), str(ready)]
        if log is not None:
            command.append(log)
        try:
            process = subprocess.Popen(command, pass_fds=(source, ready), stdin=subprocess.DEVNULL)
        except OSError as error:
            raise MountError(
                f"cannot start {sys.executable} to serve {wanted.target}: {error.strerror}", errno=error.errno,
                backend=_BACKEND,
            ) from error  # fmt: skip
        with process:
            os.close(source)
            os.close(ready)
            source = ready = -1
            with os.fdopen(text, "wb") as pipe, contextlib.suppress(BrokenPipeError):
                text = -1
                pipe.write(wanted.to_json())
        with os.fdopen(answer, "rb") as pipe:
            answer = -1
            line = pipe.readline()
    finally:
        for fd in (source, ready, text, answer):
            if fd >= 0:
                os.close(fd)
    try:
        said = json.loads(line)
    except ValueError:
        raise MountError(f"cannot mount at {wanted.target}: the serving process died", backend=_BACKEND) from None
    if "error" in said:
        raise MountError(
            f"cannot mount at {wanted.target}: {said['error']}", errno=said.get("errno"), backend=_BACKEND
        )  # fmt: skip
    for entry in reversed(read_mounts()):
        if entry.target == wanted.target:
            return entry.mount_id, int(said["pid"])
    raise MountError(f"the mount at {wanted.target} is gone", errno=errno.ENOENT, backend=_BACKEND)


def _pipe() -> tuple[int, int]:
    """Make a pipe whose ends are no standard streams: where this process has closed those, the other opens its own."""
    ends = os.pipe()
    try:
        return fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 3), fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        for end in ends:
            os.close(end)


def is_dead(target: str | os.PathLike[str]) -> bool:
    """Whether a path is covered by a mount of layerfs whose process has died."""
    try:
        # Not stat: the kernel still answers that from what the process had said.
        os.statvfs(target)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            return False
    else:
        return False
    path = os.path.realpath(target)
    return any(entry.target == path and entry.fstype == _FSTYPE for entry in read_mounts())


def clear_dead(target: str | os.PathLike[str]) -> None:
    """Unmount what :func:`is_dead` finds; whatever else is there stays.

    Raises:
        MountError: it cannot be unmounted.
    """
    while is_dead(target):
        path = os.path.realpath(target)
        try:
            umount(path, lazy=True)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise MountError(f"cannot unmount {path}: {error.strerror}", errno=error.errno) from error
            unmount_by_helper(path, lazy=True)


def unmount_by_helper(path: str, *, lazy: bool) -> None:
    """Unmount a user's own FUSE mount.

    Raises:
        MountError: EBUSY or EPERM with what the helper said.
    """
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise MountError(f"cannot unmount {path}: fusermount3 is not installed", errno=errno.EPERM) from error
    if done.returncode:
        said = os.fsdecode(done.stderr.strip()).removeprefix("fusermount3: ") or "fusermount3 failed"
        number = errno.EBUSY if "busy" in said.lower() else errno.EPERM
        raise MountError(f"cannot unmount {path}: {said}", errno=number)
