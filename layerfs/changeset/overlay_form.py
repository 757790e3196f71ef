"""Which of overlayfs's two spellings of its marks the writable layers of this process have."""

from __future__ import annotations

from layerfs.linux.probe import feature

__all__ = ["uses_userxattr"]


def uses_userxattr() -> bool:
    """Return whether this process keeps overlayfs's marks in ``user.``: trusted ones need privilege."""
    return not feature("trusted-xattrs").usable
