"""The first three descriptors, which a caller may have closed."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["fill_standard_descriptors"]


def fill_standard_descriptors() -> None:
    """Open what is closed of standard input, output and error, lest files of the program get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - of os
