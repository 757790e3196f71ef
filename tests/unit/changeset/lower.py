"""A directory of the host as a lower tree, for comparisons."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostInode:
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    rdev: int
    nlink: int = 1


class HostTree:
    """Inode numbers are positions in a list of paths, given out as they are met; hard links get two."""

    def __init__(self, top: Path) -> None:
        self._paths = [os.fsencode(top)]
        self._numbers = {self._paths[0]: 0}
        self.listed = 0

    @property
    def root(self) -> int:
        return 0

    def _number(self, path: bytes) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self._paths)
            self._paths.append(path)
        return self._numbers[path]

    def lookup(self, nid: int, name: bytes) -> int | None:
        parent = self._paths[nid]
        if not os.path.isdir(parent):
            raise NotADirectoryError
        path = parent + b"/" + name
        return self._number(path) if os.path.lexists(path) else None

    def readdir(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        self.listed += 1
        for name in sorted(os.listdir(self._paths[nid])):
            yield name, self._number(self._paths[nid] + b"/" + name), 0

    def inode(self, nid: int) -> HostInode:
        status = os.lstat(self._paths[nid])
        seconds, rest = divmod(status.st_mtime_ns, 1_000_000_000)
        return HostInode(status.st_mode, status.st_uid, status.st_gid, seconds, rest, status.st_size, status.st_rdev)

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        path = self._paths[nid]
        return {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
