"""What this kernel and this process can do, found out by trying, not by version numbers.

A probe asks the kernel for the real thing and throws it away: it opens a file system context, never mounts, and leaves
nothing behind. All probes together take well under 5 ms; each runs once per process, when it is first asked for.

The answer is a :class:`Feature`: usable, or not and why. A reason is half a sentence that can follow "not, because".
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

from layerfs.linux.mount_api import fsconfig_create, fsconfig_fd, fsconfig_flag, fsconfig_string, fsopen
from layerfs.linux.process import has_sys_admin, in_initial_user_namespace, may_gain_sys_admin

__all__ = ["Feature", "feature", "privilege_hint"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that may or may not work here.

    Attributes:
        name: a stable word for programs.
        usable: whether it works for this process now.
        reason: why not, or how it works; one clause, lower case, no full stop.
    """

    name: str
    usable: bool
    reason: str


@functools.cache
def feature(name: str) -> Feature:
    """Probe one feature, once per process.

    Args:
        name: one of ``privilege``, ``trusted-xattrs``, ``mount-api``, ``erofs``, ``erofs-file``, ``overlay``,
            ``overlay-lower-fd``, ``fuse``.

    Returns:
        The answer; it stays the same for the life of the process.

    Raises:
        ValueError: for a name that is none of these.

    Blocking: may load a kernel module (erofs, overlay) the first time.
    """
    try:
        probe = _PROBES[name]
    except KeyError:
        raise ValueError(f"unknown feature: {name}") from None
    usable, reason = probe()
    return Feature(name, usable, reason)


def privilege_hint() -> str:
    """Say how a process gets CAP_SYS_ADMIN that lacks it: root does so in a container."""
    if os.geteuid() == 0:
        return "run with CAP_SYS_ADMIN; a container has it with --cap-add SYS_ADMIN --device /dev/fuse"
    return "run as root"


def _probe_privilege() -> tuple[bool, str]:
    """Look for CAP_SYS_ADMIN in the effective set."""
    if has_sys_admin():
        return True, "CAP_SYS_ADMIN is effective"
    return False, f"user {os.geteuid()} lacks CAP_SYS_ADMIN"


def _probe_trusted_xattrs() -> tuple[bool, str]:
    """Look whether this is the initial user namespace, which alone has ``trusted.*`` xattrs."""
    if not in_initial_user_namespace():
        return False, "trusted xattrs do not exist in a user namespace"
    if not feature("privilege").usable:
        return False, feature("privilege").reason
    return True, "trusted xattrs can be read and set"


def _probe_mount_api() -> tuple[bool, str]:
    """Open a context of a file system that every kernel has."""
    return _try_context("tmpfs", lambda _context: None, "fsopen, fsconfig, fsmount and move_mount work")


def _probe_erofs() -> tuple[bool, str]:
    """Open an EROFS context."""
    return _try_context("erofs", lambda _context: None, "the kernel has EROFS")


def _probe_erofs_file() -> tuple[bool, str]:
    """Tell whether EROFS mounts a regular file without a loop device.

    The kernel decides that only when it opens the source, and complains into its log about a file that is no image.
    A socket is neither block device nor file: a kernel that insists on a block device answers ENOTBLK at once, one
    that mounts files tries to open it, which is ENXIO, and logs nothing (fs/erofs/super.c, erofs_fc_get_tree).
    """
    return _try_context("erofs", _create_from_socket, "image files are mounted without a loop device")


def _create_from_socket(context: int) -> None:
    """Try to mount a socket; the one refusal that shows support for files passes for success."""
    import socket  # noqa: PLC0415 - hardly ever asked for, and takes 4 ms to import

    one, two = socket.socketpair()
    with one, two:
        fsconfig_string(context, "source", f"/proc/self/fd/{one.fileno()}")
        fsconfig_flag(context, "ro")
        try:
            fsconfig_create(context)
        except OSError as err:
            if err.errno == errno.ENOTBLK:
                text = (
                    "this kernel mounts EROFS from block devices only "
                    "(needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE)"
                )
                raise OSError(errno.ENOTBLK, text) from None
            if err.errno == errno.EPERM:
                text = "the kernel does not mount EROFS in a user namespace"
                raise OSError(errno.EPERM, text) from None
            if err.errno != errno.ENXIO:
                raise


def _probe_overlay() -> tuple[bool, str]:
    """Open an overlayfs context."""
    return _try_context("overlay", lambda _context: None, "the kernel has overlayfs")


def _probe_overlay_lower_fd() -> tuple[bool, str]:
    """Give overlayfs a lower directory by descriptor."""

    def add_lower(context: int) -> None:
        fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fsconfig_fd(context, "lowerdir+", fd)
        except OSError as err:
            raise OSError(err.errno, "overlayfs takes no lower by descriptor (needs Linux 6.13)") from None
        finally:
            os.close(fd)

    return _try_context("overlay", add_lower, "lowers are given by descriptor")


def _probe_fuse() -> tuple[bool, str]:
    """Open /dev/fuse, and look for the helper that an unprivileged mount needs."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        return False, f"/dev/fuse cannot be opened: {_text(err)}"
    if not feature("privilege").usable:
        if os.geteuid() == 0:
            return False, feature("privilege").reason  # the helper has no more than root has
        from shutil import which  # noqa: PLC0415 - most commands do without

        if which("fusermount3") is None:
            return False, "fusermount3 is not installed"
        if not may_gain_sys_admin():
            return False, "fusermount3 gains no privileges here (no_new_privs, or a container without CAP_SYS_ADMIN)"
    return True, "/dev/fuse can be opened"


def _try_context(fstype: str, use: Callable[[int], None], good: str) -> tuple[bool, str]:
    """Open a context, use it, and throw it away."""
    try:
        context = fsopen(fstype)
    except OSError as err:
        if err.errno == errno.ENODEV:
            return False, f"this kernel has no {fstype} file system"
        if err.errno == errno.ENOSYS:
            return False, "there is no new mount API here (needs Linux 5.2, and no filter that hides it)"
        if err.errno == errno.EPERM and not feature("privilege").usable:
            return False, feature("privilege").reason
        if err.errno == errno.EPERM:
            return False, f"the kernel does not mount {fstype} in a user namespace"
        return False, _text(err)
    try:
        use(context)
    except OSError as err:
        return False, _text(err)
    else:
        return True, good
    finally:
        os.close(context)


def _text(err: OSError) -> str:
    """Return the message of an error in lower case at its beginning."""
    text = err.strerror or str(err)
    return text[:1].lower() + text[1:]


_PROBES: dict[str, Callable[[], tuple[bool, str]]] = {
    "privilege": _probe_privilege,
    "trusted-xattrs": _probe_trusted_xattrs,
    "mount-api": _probe_mount_api,
    "erofs": _probe_erofs,
    "erofs-file": _probe_erofs_file,
    "overlay": _probe_overlay,
    "overlay-lower-fd": _probe_overlay_lower_fd,
    "fuse": _probe_fuse,
}
