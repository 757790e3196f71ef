"""Attaching a FUSE connection to a directory, by itself or by fusermount3; and detaching it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess

from layerfs.linux.mount_api import legacy_mount, umount
from layerfs.linux.mountinfo import read_mounts
from layerfs.mount.fuse.specification import FuseSpecification

__all__ = ["attach", "detach_mount", "find_device", "raise_read_ahead"]

#: MS_* of sys/mount.h; the last one hands the umask through, so that default ACLs can take its place.
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _POSIXACL = 1, 2, 4, 8, 1 << 16
#: Kilobytes that the kernel reads ahead; its default of 128 makes eight requests of a mebibyte. For 1,024 at a time it
#: takes blocks of memory that a virtual machine may have given back to its host: 1.2 ms per MiB for 0.95.
_READ_AHEAD = 512
#: Where fusermount3 finds the socket that it sends the descriptor to (libfuse, lib/mount.c).
_SOCKET = "_FUSE_COMMFD"


def attach(wanted: FuseSpecification, *, privileged: bool) -> int:
    """Mount; nothing in it works before the first request is answered.

    Args:
        wanted: what to mount, and where.
        privileged: whether this process may mount by itself.

    Returns:
        A descriptor of /dev/fuse that the requests come from.

    Raises:
        OSError: the mount was refused; with what fusermount3 said.
    """
    if not privileged:
        return _attach_by_helper(wanted)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount(wanted, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def find_device(target: str) -> str | None:
    """Return the device number of the mount that was just made, ``MAJOR:MINOR``, by which it is found again."""
    return next((entry.device for entry in reversed(read_mounts()) if entry.target == target), None)


def detach_mount(device: str, *, privileged: bool) -> None:
    """Take the mount out of the tree, wherever it has been moved to; who is inside can go on.

    Raises:
        OSError: it cannot be; EBUSY where another mount covers it, ENOENT if it is nowhere.
    """
    mounts = read_mounts()
    target = next((entry.target for entry in reversed(mounts) if entry.device == device), None)
    if target is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if next(entry for entry in reversed(mounts) if entry.target == target).device != device:
        raise OSError(errno.EBUSY, "another mount covers it", target)
    if privileged:
        umount(target, lazy=True)
        return
    done = subprocess.run(
        ["fusermount3", "-u", "-z", "-q", "--", target], check=False, stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode:
        raise OSError(errno.EPERM, os.fsdecode(done.stderr).strip() or "fusermount3 failed", target)


def raise_read_ahead(device: str) -> None:
    """Let the kernel read ahead as much as one request can carry; only root may."""
    with contextlib.suppress(OSError), open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as file:
        file.write(str(_READ_AHEAD))


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


def _attach_by_helper(wanted: FuseSpecification) -> int:
    """Mount by fusermount3, which mounts nosuid and nodev for users whatever is asked, and sends the descriptor."""
    if shutil.which("fusermount3") is None:
        raise OSError(errno.ENOENT, "is not installed (apt install fuse3)", "fusermount3")
    ours, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, helpers:
        # By env, because a library does not read its environment to hand it on.
        helper = ["fusermount3", "-o", _helper_options(wanted), "--", wanted.target]
        command = ["env", f"{_SOCKET}={helpers.fileno()}", *helper]
        with subprocess.Popen(
            command, pass_fds=[helpers.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            helpers.close()
            _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
            said = os.fsdecode(process.stderr.read() if process.stderr is not None else b"")
    if not fds:
        raise OSError(errno.EPERM, said.strip().removeprefix("fusermount3: ") or "fusermount3 refused the mount")
    return fds[0]


def _helper_options(wanted: FuseSpecification) -> str:
    """Return the options for fusermount3."""
    source = wanted.source.replace("\\", "\\\\").replace(",", "\\,")
    words = [f"fsname={source}", "subtype=layerfs", "default_permissions"]
    for on, word in (
        (wanted.read_only, "ro"), (wanted.noexec, "noexec"), (wanted.allow_other, "allow_other"),
    ):  # fmt: skip
        if on:
            words.append(word)
    return ",".join(words)
