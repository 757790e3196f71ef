"""What a comparison asks of the tree below, so that any tree can be one.

:class:`layerfs.formats.erofs.reader.Tree` of a merged image fits; it has no whiteouts and no marks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["BaseInode", "BaseTree"]


class BaseInode(Protocol):
    """What is compared of an inode of the lower tree; units as in :class:`os.stat_result`."""

    @property
    def mode(self) -> int:
        """Type and permission bits."""

    @property
    def uid(self) -> int:
        """Owner."""

    @property
    def gid(self) -> int:
        """Group."""

    @property
    def mtime(self) -> int:
        """Seconds since the epoch."""

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds on top, below 1e9."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def rdev(self) -> int:
        """Device number in the host's numbering."""

    @property
    def nlink(self) -> int:
        """How many names it has."""


class BaseTree(Protocol):
    """What is asked of the tree below: :class:`layerfs.formats.erofs.reader.Tree` of a merged image."""

    @property
    def root(self) -> int:
        """Inode number of the root directory."""

    def lookup(self, nid: int, name: bytes) -> int | None:
        """Return the inode number of an entry of a directory, or None."""

    def readdir(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield name, inode number and type of a directory's entries."""

    def inode(self, nid: int) -> BaseInode:
        """Return an inode."""

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Return the xattrs of an inode by full name."""
