"""Memory of this process that is free, but still its own."""

from __future__ import annotations

import contextlib
import ctypes

from layerfs.linux.syscall import declare_libc

__all__ = ["return_memory"]

_malloc_trim = declare_libc("malloc_trim", ctypes.c_size_t)


def return_memory() -> None:
    """Give freed memory back to the kernel; does nothing where this libc has no ``malloc_trim``."""
    with contextlib.suppress(OSError):
        _malloc_trim(0)
