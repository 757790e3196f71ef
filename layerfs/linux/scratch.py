"""Directories for what is needed until something is done. Those of processes that were killed go the next time.

A directory under way is marked and locked. What is marked and nobody has locked is of a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["scratch_directory"]

#: Seconds until a directory that was made is locked, at the latest.
_FRESH = 60


@contextmanager
def scratch_directory(place: str, stem: str) -> Iterator[str]:
    """Make a directory, and remove it with all that is in it at the end.

    Args:
        place: where it is made, and what killed processes have left of the same stem is removed.
        stem: how its name begins, behind a dot.

    Raises:
        OSError: ENOENT, ENOSPC, EACCES, EROFS.
    """
    marker = f".made-by-{stem}"
    _sweep(place, re.compile(rf"\.{re.escape(stem)}-[a-z0-9_]{{8}}"), marker)
    directory = tempfile.mkdtemp(prefix=f".{stem}-", dir=place)
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with open(os.path.join(directory, marker), "xb"):
            pass
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # what stays, the next one sweeps
        os.close(held)


def _sweep(place: str, names: re.Pattern[str], marker: str) -> None:
    """Remove what has such a name and the marker, which tells it from what somebody else has called so."""
    with suppress(OSError):
        for name in filter(names.fullmatch, os.listdir(place)):
            with suppress(OSError):  # it is no directory, not ours, just being removed
                _remove_left(os.path.join(place, name), marker)


def _remove_left(path: str, marker: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        is_ours = status.st_uid == os.geteuid() and os.path.isfile(os.path.join(path, marker))
        if is_ours and time.time() - status.st_ctime > _FRESH:
            shutil.rmtree(path)
    finally:
        os.close(fd)
