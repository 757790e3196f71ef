"""Room for the database when the disk is full: what SQLite needs is set aside, for the verbs that make room.

A container that fills the disk would lock out all verbs, also those that would help. So a file is kept that can be done
without. Only who is about to make room gives it up: what goes on writing would have it in a moment.
"""

from __future__ import annotations

import contextlib
import errno
import os

from layerfs.linux.durable import fsync_directory

__all__ = ["block_size", "give_up_spare", "is_full", "keep_spare"]

#: Bytes kept, what counts as full, and the room from which on they are set aside.
_SPARE, _FULL, _PLENTY = 1 << 20, 256 << 10, 8 << 20

#: Bytes that are tried where the file system says that it has room, and a quota may say no.
_TRIED = 64 << 10

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def keep_spare(database: str) -> None:
    """Set a file aside beside a database, if there is plenty of room."""
    path = f"{database}.spare"
    with contextlib.suppress(OSError):
        if os.path.exists(path) or _room(os.statvfs(os.path.dirname(database))) < _PLENTY:
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SPARE)
        except OSError:
            os.unlink(path)  # an empty one would count as there
            raise
        finally:
            os.close(fd)


def give_up_spare(database: str) -> None:
    """Remove the file that was set aside, if the disk is full."""
    root = os.path.dirname(database)
    if is_full(root):
        with contextlib.suppress(OSError):
            os.unlink(f"{database}.spare")
            fsync_directory(root)  # a journal gives space back when it has committed


def is_full(root: str) -> bool:
    """Return whether the file system of a directory, or a quota on it, leaves no room, or has no inode left."""
    try:
        found = os.statvfs(root)
    except OSError:
        return False
    if _room(found) < _FULL or (found.f_files and not found.f_favail):
        return True
    try:
        fd = os.open(root, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno in _NO_ROOM
    try:
        os.posix_fallocate(fd, 0, _TRIED)
    except OSError as error:
        return error.errno in _NO_ROOM
    finally:
        os.close(fd)
    return False


def block_size(root: str) -> int:
    """Return the unit in which the file system of a directory gives out room, in bytes."""
    return os.statvfs(root).f_frsize


def _room(found: os.statvfs_result) -> int:
    """Return how many bytes any user can still write to a file system."""
    return found.f_bavail * found.f_frsize  # of the rest, ext4 keeps some even from root
