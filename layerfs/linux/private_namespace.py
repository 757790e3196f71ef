"""Running a function in a mount namespace of its own, without a process of its own.

For kernels that want a mount to be attached before another file system may use it: it is attached in a namespace that
only one thread sees, so no other process meets it and nothing has to be cleaned up, whatever happens.

Source: unshare(2), "CLONE_NEWNS"; mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

from layerfs.linux.syscall import declare_libc

__all__ = ["run_in_private_namespace"]

_T = TypeVar("_T")

_CLONE_NEWNS = 0x00020000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18

_unshare = declare_libc("unshare", ctypes.c_int)
_mount = declare_libc("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def run_in_private_namespace(function: Callable[[], _T]) -> _T:
    """Call a function in a thread whose mounts are copies that no one else sees.

    Descriptors are shared with the process: the function may return one of a detached mount it made. Paths that it
    mounts from must be opened inside, since a descriptor opened outside belongs to the other namespace.

    Args:
        function: called once, without arguments, in a new thread; the working directory is the caller's.

    Returns:
        What the function returns.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, ENOSPC at the limit of mount namespaces.
        BaseException: whatever the function raises.

    Blocking: until the function ends; about 0.3 ms of its own, growing with the number of mounts.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _unshare(_CLONE_NEWNS)
            # Without this the namespace would pass what is mounted in it to its peers, the caller's among them.
            _mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
            results.append(function())
        except BaseException as err:  # noqa: BLE001 - handed to the caller's thread below
            errors.append(err)

    thread = threading.Thread(target=run, name="layerfs-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
