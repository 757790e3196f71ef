"""How many descriptors may be kept only to be at hand."""

from __future__ import annotations

import resource

__all__ = ["descriptor_share"]

_MOST = 512


def descriptor_share() -> int:
    """Return how many descriptors one cache may hold, so that all together never take more than half of them."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else max(8, min(_MOST, soft // 8))
