"""Calls into libc and the kernel that Python's ``os`` does not offer, declared one prototype each.

Not a wrapper collection: the modules of this package declare what they need here and give it a meaning. Every declared
call has its argument types fixed and raises :class:`OSError` from ``errno``; only what :func:`bare_syscall` declares
returns -1.

Imported by ``layerfs.linux`` only.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from typing import Any

__all__ = ["AT_FDCWD", "bare_syscall", "declare_libc", "declare_syscall"]

#: The ``dirfd`` that means the current directory (linux/fcntl.h).
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def _raise_errno(result: Any, _function: object, _arguments: tuple[object, ...]) -> Any:
    """Turn the -1 of a failed call into OSError."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def declare_libc(name: str, *argtypes: Any, result: Any = ctypes.c_int) -> Callable[..., int]:
    """Declare a function of libc that reports errors through errno.

    Args:
        name: the function's name.
        argtypes: ctypes types of its arguments, in order.
        result: ctypes type of its result.

    Returns:
        A callable; where this libc lacks the function, one that raises ENOSYS.
    """
    try:
        function = ctypes.CFUNCTYPE(result, *argtypes, use_errno=True)((name, _libc))
    except AttributeError:

        def missing(*_arguments: object) -> int:
            raise OSError(errno.ENOSYS, f"this libc has no {name}")

        return missing
    function.errcheck = _raise_errno
    return function


def declare_syscall(number: int, *argtypes: Any) -> Callable[..., int]:
    """Declare a system call by number.

    Only calls from 424 on may be declared: from there architectures use one number, but for Alpha and MIPS, where none
    of these works.

    Args:
        number: the system call's number.
        argtypes: ctypes types of its arguments, in order.

    Returns:
        A callable that raises ENOSYS on a kernel without the call.

    Source: include/uapi/asm-generic/unistd.h.
    """
    return functools.partial(declare_libc("syscall", ctypes.c_long, *argtypes, result=ctypes.c_long), number)


def bare_syscall(number: int) -> Callable[..., int]:
    """Return a system call without a prototype, in three quarters of the time, for calls made by the hundred.

    Args:
        number: as for :func:`declare_syscall`.

    Returns:
        A callable that takes bytes, None and integers of 31 bits, and returns -1 on failure; the reason is then in
        ``ctypes.get_errno()``.
    """
    return functools.partial(_libc.syscall, number)
