"""How much of a disk something takes, as opposed to how large it says that it is."""

from __future__ import annotations

import os
from collections.abc import Iterable

from layerfs.linux.directory_stack import walk_status

__all__ = ["files_disk", "tree_disk"]


def files_disk(paths: Iterable[str]) -> int:
    """Return the bytes allocated for these files; those that are not there count for nothing."""
    total = 0
    for path in paths:
        try:
            total += os.stat(path).st_blocks * 512
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


def tree_disk(directory: str) -> int:
    """Return the bytes allocated below a directory, each inode once. Its depth is no limit.

    What this process may not look into, and what is removed meanwhile, counts for nothing.

    Raises:
        OSError: ENOENT, ENOTDIR.
    """
    blocks: dict[int, int] = {}
    try:
        start = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            blocks.update((status.st_ino, status.st_blocks) for status in walk_status(start, blind=True))
        finally:
            os.close(start)
    except PermissionError:
        return 0
    return sum(blocks.values()) * 512
