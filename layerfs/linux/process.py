"""Waiting for processes that are nobody's children here."""

from __future__ import annotations

import os
import select

__all__ = ["wait_for_end"]


def wait_for_end(pid: int, seconds: float) -> bool:
    """Wait until a process has ended and so closed everything; one that nobody has waited for yet has.

    Args:
        pid: the process, of any parent.
        seconds: how long at most.

    Returns:
        Whether it has ended.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        return bool(waiter.poll(int(seconds * 1000)))
    finally:
        os.close(fd)
