"""How much of a disk something takes, as opposed to how large it says that it is."""

from __future__ import annotations

import os
import stat

from layerfs.linux.directory_stack import DirectoryStack

__all__ = ["tree_disk"]


def tree_disk(directory: str) -> int:
    """Return the bytes allocated below a directory, each inode once. Its depth is no limit.

    Raises:
        OSError: ENOENT, EACCES.
    """
    seen: set[int] = set()
    total = 0
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with DirectoryStack(fd) as stack:
            todo: list[list[bytes]] = []
            while True:
                below = []
                for name in os.listdir(stack.fd):
                    status = os.stat(name, dir_fd=stack.fd, follow_symlinks=False)
                    if status.st_ino not in seen:
                        seen.add(status.st_ino)
                        total += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        below.append(os.fsencode(name))
                todo.append(below)
                while not todo[-1]:
                    todo.pop()
                    if not todo:
                        return total
                    stack.pop()
                stack.push(todo[-1].pop())
    finally:
        os.close(fd)
