"""The first three descriptors, which a caller may have closed."""

from __future__ import annotations

import os

__all__ = ["fill_standard_descriptors"]


def fill_standard_descriptors() -> None:
    """Open what is closed of standard input, output and error, lest files of the program get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)  # noqa: FBT003 - of os
    os.close(fd)
