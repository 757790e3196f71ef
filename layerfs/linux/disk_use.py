"""How much of a disk something takes, as opposed to how large it says that it is."""

from __future__ import annotations

import os
import stat

from layerfs.linux.directory_stack import DirectoryStack

__all__ = ["tree_disk"]


def tree_disk(directory: str) -> int:
    """Return the bytes allocated below a directory, each inode once. Its depth is no limit.

    What this process may not look into counts for nothing.

    Raises:
        OSError: ENOENT, ENOTDIR.
    """
    seen: set[int] = set()
    total = 0

    def below(fd: int) -> list[bytes]:
        """Count what is in a directory, and return the directories in it."""
        nonlocal total
        found = []
        for name in os.listdir(fd):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except PermissionError:
                continue
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                found.append(os.fsencode(name))
        return found

    try:
        start = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return 0
    try:
        with DirectoryStack(start) as stack:
            todo = [below(stack.fd)]
            while todo:
                if not todo[-1]:
                    todo.pop()
                    if todo:
                        stack.pop()
                    continue
                try:
                    stack.push(todo[-1].pop())
                except PermissionError:
                    continue
                todo.append(below(stack.fd))
    finally:
        os.close(start)
    return total
