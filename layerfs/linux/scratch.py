"""Directories for what is needed until something is done. Those of processes that were killed go the next time.

In a directory under way there is a file that marks it, and is locked. What is marked and nobody has locked is of a
process that was killed; the marker goes last, so that what is left of a removal that was interrupted has it still.
Where a file system knows no locks it stays, for nobody can tell whether it is used.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from layerfs.linux.staging import NO_LOCKS

__all__ = ["scratch_directory"]

#: Seconds until a directory that was made is marked and locked, at the latest.
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
    held = -1
    try:
        # Not the directory itself: over NFS a lock needs what is open for writing.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        held = os.open(os.path.join(directory, marker), flags, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield directory
    finally:
        with suppress(OSError):  # what stays, the next one sweeps
            _remove(directory, marker)
        if held >= 0:
            os.close(held)


def _sweep(place: str, names: re.Pattern[str], marker: str) -> None:
    """Remove what has such a name and the marker, which tells it from what somebody else has called so."""
    with suppress(OSError):
        for name in filter(names.fullmatch, os.listdir(place)):
            with suppress(OSError):  # it is no directory, not ours, used, just being removed
                _remove_left(os.path.join(place, name), marker)


def _remove_left(path: str, marker: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or time.time() - status.st_ctime < _FRESH:
        return
    try:
        fd = os.open(os.path.join(path, marker), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        os.rmdir(path)  # if it is empty, its maker did not get further
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path, marker)
    finally:
        os.close(fd)


def _remove(directory: str, marker: str) -> None:
    """Remove a directory and what is in it, the marker last.

    Raises:
        OSError: something could not be removed; what could is gone.
    """
    with os.scandir(directory) as entries:
        found = [entry for entry in entries if entry.name != marker]
    failure: OSError | None = None
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, marker))
    os.rmdir(directory)
