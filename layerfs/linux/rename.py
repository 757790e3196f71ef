"""renameat2(2): renaming that refuses, exchanges or leaves a whiteout.

Source: rename(2); linux/fs.h.
"""

from __future__ import annotations

import ctypes

from layerfs.linux.syscall import declare_libc

__all__ = ["EXCHANGE", "NOREPLACE", "WHITEOUT", "rename"]

NOREPLACE = 1
EXCHANGE = 2
WHITEOUT = 4

_renameat2 = declare_libc(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)  # fmt: skip


def rename(source_fd: int, source: bytes, destination_fd: int, destination: bytes, flags: int) -> None:
    """Rename a name of one directory to a name of another, in one step.

    Args:
        source_fd: the directory of ``source``.
        source: one name.
        destination_fd: the directory of ``destination``.
        destination: one name.
        flags: ``NOREPLACE``, ``EXCHANGE``, or ``WHITEOUT``, which leaves a 0/0 device at the old place.

    Raises:
        OSError: EINVAL where the file system does not know the flag, else as rename(2).
    """
    _renameat2(source_fd, source, destination_fd, destination, flags)
