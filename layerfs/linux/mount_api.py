"""The kernel's mount API by file descriptor: contexts, detached mounts, and putting them in place.

Every function is one system call, or one for each value, except that a failed step of a context also reads what the
kernel wrote into the context's message log, because "invalid argument" alone helps nobody. Mounts made here are
detached: they are visible to no one, and vanish when their descriptor is closed, until :func:`move_mount` attaches
them. So a failure half-way leaves nothing behind as long as the caller closes its descriptors.

Source: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2); linux/mount.h.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from collections.abc import Sequence
from itertools import repeat

from layerfs.linux.syscall import AT_FDCWD, bare_syscall, declare_libc, declare_syscall

__all__ = [
    "MAX_STRING",
    "MountAttribute",
    "clone_tree",
    "fsconfig_create",
    "fsconfig_fd",
    "fsconfig_flag",
    "fsconfig_string",
    "fsconfig_strings",
    "fsmount",
    "fsopen",
    "legacy_mount",
    "move_mount",
    "read_messages",
    "umount",
]

StrPath = str | os.PathLike[str]

#: The longest value that :func:`fsconfig_string` can pass; the kernel copies 256 bytes with the terminator
#: (fs/fsopen.c).
MAX_STRING = 255

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_OPEN_TREE_CLONE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
#: One message of a context's log never exceeds this (fs/fs_context.c formats into small allocations).
_MESSAGE_SIZE = 4096


class MountAttribute(enum.IntFlag):
    """Attributes of one mount, as :func:`fsmount` takes them (``MOUNT_ATTR_*`` of linux/mount.h)."""

    NONE = 0
    RDONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04
    NOEXEC = 0x08


_open_tree = declare_syscall(428, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_move_mount = declare_syscall(429, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_fsopen = declare_syscall(430, ctypes.c_char_p, ctypes.c_uint)
_fsconfig = declare_syscall(431, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_bare_fsconfig = bare_syscall(431)
_fsmount = declare_syscall(432, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
_umount2 = declare_libc("umount2", ctypes.c_char_p, ctypes.c_int)
_mount = declare_libc("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def fsopen(fstype: str) -> int:
    """Open a context for a new file system instance.

    Args:
        fstype: the kernel's name of the file system; its module is loaded if need be.

    Returns:
        A descriptor of the context that the caller closes.

    Raises:
        OSError: ENODEV if the kernel has no such file system, EPERM without CAP_SYS_ADMIN in the owner of the mount
            namespace, ENOSYS before Linux 5.2.
    """
    try:
        return _fsopen(fstype.encode(), _FSOPEN_CLOEXEC)
    except OSError as err:
        raise OSError(err.errno, f"fsopen {fstype}: {err.strerror}") from None


def fsconfig_string(context: int, key: str, value: StrPath) -> None:
    """Set an option of a context to a text.

    Args:
        context: descriptor from :func:`fsopen`.
        key: the option's name.
        value: its value, at most 255 bytes; a relative path starts at the current directory.

    Raises:
        OSError: EINVAL for an unknown option or a value refused, ENAMETOOLONG for a longer value; the message holds
            what the kernel said.
    """
    raw = os.fsencode(value)
    if len(raw) > MAX_STRING:
        raise OSError(errno.ENAMETOOLONG, f"option {key} is longer than {MAX_STRING} bytes")
    _configure(context, _FSCONFIG_SET_STRING, key, raw, 0)


def fsconfig_strings(context: int, key: str, values: Sequence[bytes]) -> None:
    """Set an option that may be given many times, in order: as :func:`fsconfig_string`, in half the time of Python.

    Raises:
        OSError: as :func:`fsconfig_string`; what came before stays set.
    """
    calls = map(_bare_fsconfig, repeat(context), repeat(_FSCONFIG_SET_STRING), repeat(key.encode()), values, repeat(0))
    for value, result in zip(values, calls, strict=True):
        if result:
            number = ctypes.get_errno()
            raise _explain(context, f"option {key}={os.fsdecode(value)}", OSError(number, os.strerror(number)))


def fsconfig_fd(context: int, key: str, fd: int) -> None:
    """Set an option of a context to an open descriptor.

    Args:
        context: descriptor from :func:`fsopen`.
        key: the option's name.
        fd: what the option is to be; the kernel takes its own reference.

    Raises:
        OSError: EINVAL where this kernel takes no descriptor for the option, EBADF.
    """
    _configure(context, _FSCONFIG_SET_FD, key, None, fd)


def fsconfig_flag(context: int, key: str) -> None:
    """Set an option of a context that has no value, such as ``ro``.

    Args:
        context: descriptor from :func:`fsopen`.
        key: the option's name.

    Raises:
        OSError: EINVAL for an unknown option.
    """
    _configure(context, _FSCONFIG_SET_FLAG, key, None, 0)


def fsconfig_create(context: int) -> None:
    """Make the file system instance that a context describes.

    Args:
        context: descriptor from :func:`fsopen`.

    Raises:
        OSError: whatever the file system refuses, with what it wrote into the log.

    Blocking: reads the file system's superblock.
    """
    _configure(context, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(context: int, attributes: MountAttribute = MountAttribute.NONE) -> int:
    """Make a detached mount of the instance of a context.

    Args:
        context: descriptor after :func:`fsconfig_create`.
        attributes: attributes of the mount.

    Returns:
        A descriptor of the mount's root. The mount ends with its last descriptor unless it was attached.

    Raises:
        OSError: EPERM, EBUSY if the context has no instance.
    """
    try:
        return _fsmount(context, _FSMOUNT_CLOEXEC, int(attributes))
    except OSError as err:
        raise _explain(context, "fsmount", err) from None


def move_mount(mount: int, target: int) -> None:
    """Attach a detached mount.

    Args:
        mount: descriptor of the mount's root.
        target: descriptor of the directory (or of the file, for a file mount) to cover, opened with O_PATH.

    Raises:
        OSError: ENOTDIR if one is a directory and the other not, EINVAL if the target is not in the caller's mount
            namespace, EPERM.
    """
    _move_mount(mount, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def clone_tree(path: StrPath) -> int:
    """Make a detached copy (a bind mount) of what is mounted at a path, without the mounts below.

    Args:
        path: root of the copy.

    Returns:
        A descriptor of the copy's root, as from :func:`fsmount`.

    Raises:
        OSError: ENOENT, EPERM, EINVAL.
    """
    return _open_tree(AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)


def umount(target: StrPath, *, lazy: bool = False) -> None:
    """Detach the topmost mount at a path.

    Args:
        target: the mount point; a symbolic link as last component is not followed.
        lazy: detach at once even while in use; the file system ends when its last user does.

    Raises:
        OSError: EBUSY while in use, EINVAL if nothing is mounted there, EPERM, ENOENT.

    Blocking: may write back dirty data of the last mount of a file system.
    """
    try:
        _umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    except OSError as err:
        raise OSError(err.errno, err.strerror, os.fspath(target)) from None


def legacy_mount(source: str, target: StrPath, fstype: str, flags: int, options: str) -> None:
    """Mount by mount(2), for kernels whose file system does not take its options from a context.

    Args:
        source: the text that the mount table shows as source.
        target: the directory to cover.
        fstype: the kernel's name of the file system.
        flags: MS_* bits of sys/mount.h.
        options: comma-separated options, together below one page of 4096 bytes.

    Raises:
        OSError: E2BIG for options over one page, else what the kernel answers.
    """
    raw = os.fsencode(options)
    # The kernel cuts a longer text off silently, and would then mount something else.
    if len(raw) >= os.sysconf("SC_PAGE_SIZE"):
        raise OSError(errno.E2BIG, f"{len(raw)} bytes of mount options do not fit into one page")
    _mount(source.encode(), os.fsencode(target), fstype.encode(), flags, raw)


def read_messages(context: int) -> list[str]:
    """Take the messages that the kernel has logged for a context.

    Args:
        context: descriptor from :func:`fsopen`.

    Returns:
        Messages, oldest first, without their level letter; each is returned once.
    """
    messages: list[str] = []
    while True:
        try:
            raw = os.read(context, _MESSAGE_SIZE)
        except OSError:
            # ENODATA ends the log; anything else must not hide the error that is being explained.
            return messages
        text = os.fsdecode(raw).rstrip("\n")
        messages.append(text[2:] if text[1:2] == " " else text)


def _configure(context: int, command: int, key: str | None, value: bytes | None, extra: int) -> None:
    """Call fsconfig and explain its failure."""
    try:
        _fsconfig(context, command, None if key is None else key.encode(), value, extra)
    except OSError as err:
        what = "create" if key is None else f"option {key}"
        if value is not None:
            what += f"={os.fsdecode(value)}"
        raise _explain(context, what, err) from None


def _explain(context: int, what: str, err: OSError) -> OSError:
    """Make an error that carries the context's messages."""
    messages = "; ".join(read_messages(context))
    text = f"{what}: {messages} ({err.strerror})" if messages else f"{what}: {err.strerror}"
    return OSError(err.errno, text)
