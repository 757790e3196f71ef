"""How many descriptors may be kept only to be at hand."""

from __future__ import annotations

import resource

__all__ = ["descriptor_share"]

_MOST = 512


def descriptor_share(most: int = _MOST) -> int:
    """Return how many descriptors one holder may have, at most so many: all together never take more than half."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else max(8, min(most, soft // 8))
