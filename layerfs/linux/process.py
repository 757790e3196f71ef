"""Processes: waiting for those that are nobody's children here, and what this one may do."""

from __future__ import annotations

import os
import select
from errno import EINVAL, EPERM
from typing import Literal

__all__ = [
    "another_owner",
    "groups_of",
    "has_sys_admin",
    "in_initial_user_namespace",
    "is_group_here",
    "is_user_here",
    "may_administer",
    "may_gain_sys_admin",
    "may_give_away",
    "pid_namespace",
    "sees_all_processes",
    "start_of",
    "wait_for_end",
]

#: CAP_SYS_ADMIN of linux/capability.h.
_CAP_SYS_ADMIN = 21


def groups_of(pid: int) -> set[int]:
    """Return the supplementary groups of a process; none of one that is gone, or in another namespace of them."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            line = next((line for line in file if line.startswith(b"Groups:")), b":")
    except OSError:
        return set()
    return set(map(int, line.partition(b":")[2].split()))


def may_administer(pid: int) -> bool:
    """Return whether a process has CAP_SYS_ADMIN where it counts, in the initial user namespace; not if it is gone."""
    try:
        same = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
        return same and in_initial_user_namespace() and has_sys_admin(pid)
    except OSError:
        return False


def in_initial_user_namespace() -> bool:
    """Return whether this process is in the initial user namespace: one line maps every ID to itself."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() == [b"0", b"0", b"4294967295"]


def sees_all_processes() -> bool:
    """Return whether this process is in the initial PID namespace (PROC_PID_INIT_INO of linux/proc_ns.h)."""
    return pid_namespace() in {None, f"pid:[{0xEFFFFFFC}]"}


def pid_namespace() -> str | None:
    """Return the name of this process's PID namespace, as /proc has it; None where the kernel has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def has_sys_admin(pid: int | Literal["self"] = "self") -> bool:
    """Return whether CAP_SYS_ADMIN is effective for a process, in the user namespace that it is in.

    Raises:
        OSError: ENOENT, ESRCH if it is gone.
    """
    with open(f"/proc/{pid}/status", "rb") as file:
        line = next((line for line in file if line.startswith(b"CapEff:")), b":0")
    return bool(int(line.partition(b":")[2], 16) >> _CAP_SYS_ADMIN & 1)


def may_gain_sys_admin() -> bool:
    """Return whether a set-user-ID program of root that this process starts can have CAP_SYS_ADMIN."""
    with open("/proc/self/status", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file if b":" in line)
    return int(fields.get(b"CapBnd", b"-1"), 16) >> _CAP_SYS_ADMIN & 1 == 1 and not int(fields.get(b"NoNewPrivs", b"0"))


def is_user_here(uid: int) -> bool:
    """Return whether the user namespace that this process is in has a user."""
    return _is_mapped("uid_map", uid)


def is_group_here(gid: int) -> bool:
    """Return whether the user namespace that this process is in has a group."""
    return _is_mapped("gid_map", gid)


def _is_mapped(name: str, number: int) -> bool:
    with open(f"/proc/self/{name}", "rb") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= number < first + count for first, _, count in ranges)


def another_owner(uid: int) -> int:
    """Return the number of a user who is not this one: giving a file to oneself needs no privilege."""
    return 2 if uid == 1 else 1


def may_give_away(uid: int | None = None, gid: int | None = None) -> bool:
    """Return whether this process may give files to other owners, or to a certain one, tried on a file in memory."""
    other = another_owner(os.geteuid())
    fd = os.memfd_create("owner")
    try:
        os.fchown(fd, other if uid is None else uid, other if gid is None else gid)
    except OSError as error:
        if error.errno in (EPERM, EINVAL):  # no privilege; no such owner in this user namespace
            return False
        raise
    else:
        return True
    finally:
        os.close(fd)


def start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot, which with its number tells it from all others.

    None if there is no such process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name stands in parentheses and may have any bytes; the start is the 20th field behind it.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def wait_for_end(pid: int, seconds: float, *, started: int | None = None) -> bool:
    """Wait until a process has ended and so closed everything; one that nobody has waited for yet has.

    Args:
        pid: the process, of any parent.
        seconds: how long at most.
        started: its :func:`start_of`, if that is known: another one with its number means that it has ended.

    Returns:
        Whether it has ended.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        if started is not None and start_of(pid) != started:
            return True
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        return bool(waiter.poll(int(seconds * 1000)))
    finally:
        os.close(fd)
