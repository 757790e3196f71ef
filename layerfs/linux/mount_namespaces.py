"""Overlays in other mount namespaces, as the kernel tells them, without a look at every process.

Source: Linux fs/nsfs.c (NS_MNT_GET_NEXT, since 6.12), statmount(2), listmount(2) (options of a mount since 6.11).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from layerfs.linux.syscall import declare_syscall

__all__ = ["foreign_overlays"]

#: _IOR(0xb7, 11 and 12, struct mnt_ns_info) of linux/nsfs.h: a descriptor of the next or the previous namespace.
_NEXT, _PREVIOUS = 0x8010B70B, 0x8010B70C
#: struct mnt_ns_info: its size, how many mounts there are, the namespace's number.
_NAMESPACE = struct.Struct("=IIQ")
#: struct mnt_id_req: its size, nothing, a mount's number, what is asked or where to go on, the namespace's number.
_REQUEST = struct.Struct("=IIQQQ")
#: LSMT_ROOT: all mounts of the namespace.
_ALL = 0xFFFFFFFFFFFFFFFF
#: Numbers asked for at a time.
_MANY = 512

_STATMOUNT_SB_BASIC, _STATMOUNT_MNT_OPTS = 0x01, 0x80
#: struct statmount: where the options are among its texts, which texts and numbers there are, the file system's magic
#: number; the texts begin at byte 512.
_STATMOUNT = struct.Struct("=4xIQ8xQ")
_TEXTS = 512
_OVERLAY = 0x794C7630
#: Bytes of options of one mount; one of 499 layers has 40,000.
_MOST = 1 << 20

_statmount = declare_syscall(457, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
_listmount = declare_syscall(458, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)


def foreign_overlays() -> Iterator[str]:
    """Yield the options of every overlay in another mount namespace, escaped as in the table of mounts.

    The kernel leaves out namespaces that this process may not look into.

    Raises:
        OSError: ENOTTY, EINVAL or ENOSYS from an older kernel, EPERM.
    """
    for namespace in _others():
        for mount in _mounts(namespace):
            options = _overlay_options(mount, namespace)
            if options is not None:
                yield options


def _others() -> Iterator[int]:
    """Yield the numbers of all mount namespaces but this process's."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for direction in (_NEXT, _PREVIOUS):
            here = own
            try:
                while True:
                    found = bytearray(_NAMESPACE.size)
                    try:
                        there = fcntl.ioctl(here, direction, found)
                    except OSError as error:
                        if error.errno != errno.ENOENT:
                            raise
                        break
                    if here != own:
                        os.close(here)
                    here = there
                    yield _NAMESPACE.unpack(found)[2]
            finally:
                if here != own:
                    os.close(here)
    finally:
        os.close(own)


def _mounts(namespace: int) -> list[int]:
    """Return the numbers of all mounts of a namespace."""
    found: list[int] = []
    numbers = (ctypes.c_uint64 * _MANY)()
    while True:
        request = _REQUEST.pack(_REQUEST.size, 0, _ALL, found[-1] if found else 0, namespace)
        count = _listmount(request, numbers, _MANY, 0)
        found += numbers[:count]
        if count < _MANY:
            return found


def _overlay_options(mount: int, namespace: int) -> str | None:
    """Return the options of a mount if it is an overlay."""
    answer = ctypes.create_string_buffer(_TEXTS)
    try:
        _statmount(_REQUEST.pack(_REQUEST.size, 0, mount, _STATMOUNT_SB_BASIC, namespace), answer, _TEXTS, 0)
        if _STATMOUNT.unpack_from(answer)[2] != _OVERLAY:
            return None
        request = _REQUEST.pack(_REQUEST.size, 0, mount, _STATMOUNT_MNT_OPTS, namespace)
        size = 4096
        while True:
            answer = ctypes.create_string_buffer(size)
            try:
                _statmount(request, answer, size, 0)
            except OSError as error:
                if error.errno != errno.EOVERFLOW or size >= _MOST:
                    raise
                size *= 4
            else:
                break
    except FileNotFoundError:
        return None  # it was unmounted meanwhile
    where, mask, _ = _STATMOUNT.unpack_from(answer)
    if not mask & _STATMOUNT_MNT_OPTS:
        raise OSError(errno.ENOSYS, "the kernel does not tell the options of a mount")
    start = _TEXTS + where
    return os.fsdecode(answer.raw[start : answer.raw.index(b"\0", start)])
