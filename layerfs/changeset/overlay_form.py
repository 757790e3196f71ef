"""Which of overlayfs's two spellings of its marks the writable layers of this process have."""

from __future__ import annotations

import os

__all__ = ["uses_userxattr"]


def uses_userxattr() -> bool:
    """Return whether writable layers of this process have overlayfs's marks in ``user.``: trusted ones are root's."""
    return os.geteuid() != 0
