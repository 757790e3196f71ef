"""How many descriptors may be kept only to be at hand."""

from __future__ import annotations

import resource

__all__ = ["descriptor_share", "is_reserved"]

_MOST = 512

#: Descriptors that files without a name may not take: with none left nothing could be read any more, theirs included.
_RESERVE = 16


def descriptor_share(most: int = _MOST) -> int:
    """Return how many descriptors one holder may have, at most so many: all of these together take no more than half.

    The layer tars of an image come on top, one descriptor each, once they are read from.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else max(8, min(most, soft // 8))


def is_reserved(fd: int) -> bool:
    """Return whether a descriptor is one of the last that this process may have; the lowest are given out first."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft != resource.RLIM_INFINITY and fd >= soft - _RESERVE
