"""Giving a name to a file that was made without one (O_TMPFILE).

Source: open(2), linkat(2); linux/fcntl.h.
"""

from __future__ import annotations

import ctypes

from layerfs.linux.syscall import declare_libc

__all__ = ["link_open_file"]

_AT_EMPTY_PATH = 0x1000

_linkat = declare_libc(
    "linkat", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int
)  # fmt: skip


def link_open_file(fd: int, directory_fd: int, name: bytes) -> None:
    """Give an open file a name, in one step.

    Args:
        fd: the file; one that has lost its last name is refused, but not one that never had any.
        directory_fd: the directory, on the same file system.
        name: one name.

    Raises:
        OSError: EEXIST, ENOSPC, EXDEV; ENOENT also without the privilege CAP_DAC_READ_SEARCH, before Linux 6.10 and for
            a file that somebody else has opened.
    """
    _linkat(fd, b"", directory_fd, name, _AT_EMPTY_PATH)
