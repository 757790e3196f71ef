"""What the union asks of the tree below: one read-only tree, however many layers it was made of.

Two trees fit: :class:`layerfs.union.image.ImageLower`, an image's merged tree, and
:class:`layerfs.union.stack.StackLower`, plain directories with overlayfs's whiteouts.

Invariant: a lower never changes while it is in use, so every answer may be kept.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol

from layerfs.formats.erofs.directory import Directory
from layerfs.union.attribute import Attributes

__all__ = ["LowerFile", "LowerTree", "Reference"]

#: What a lower knows an inode by; nobody else looks inside.
Reference = Any


class LowerFile(NamedTuple):
    """Where a regular file's bytes lie: ``size`` of them from ``offset`` of an open file.

    ``owned`` says whether the descriptor is the caller's to close.
    """

    fd: int
    offset: int
    size: int
    owned: bool


class LowerTree(Protocol):
    """A read-only tree. All methods raise OSError; EIO stands for what is damaged or missing."""

    @property
    def root(self) -> Reference:
        """The root directory."""

    @property
    def limit(self) -> int:
        """A number above every inode number; 0 if the upper's own numbers cannot collide with this tree's."""

    @property
    def shift(self) -> int:
        """What is to be added to a reference for its inode number, in a tree with :meth:`rows`."""

    def lookup(self, directory: Reference, name: bytes) -> Reference | None:
        """Return what a name in a directory means, or None."""

    def entries(self, directory: Reference) -> list[tuple[bytes, Reference | None]]:
        """Return a new list of the names in a directory with what they mean, each once, always in the same order.

        None is what a name means that is there and cannot be looked up: a redirect.
        """

    def rows(self, directory: Reference) -> Directory | None:
        """Return the entries of a directory by row, in the order of :meth:`entries`.

        None if the tree is no EROFS image, where references are numbers that differ from inode numbers by what
        :attr:`shift` says.
        """

    def number(self, reference: Reference) -> int:
        """Return the inode number, the same as long as it is mounted: 2 or more but for the root; one for all names."""

    def kind(self, reference: Reference) -> int:
        """Return the type bits of the mode."""

    def attributes(self, reference: Reference) -> Attributes:
        """Return what stat says."""

    def is_merged(self, reference: Reference) -> bool:
        """Whether a directory consists of several ones, whose links nobody has counted."""

    def readlink(self, reference: Reference) -> bytes:
        """Return the target of a symbolic link."""

    def xattrs(self, reference: Reference) -> dict[bytes, bytes]:
        """Return all extended attributes but overlayfs's own."""

    def open(self, reference: Reference) -> LowerFile:
        """Open a regular file for reading."""

    def paths(self, reference: Reference) -> list[list[bytes]]:
        """Return all paths of a file with several links, as lists of names from the root."""

    def statfs(self) -> os.statvfs_result:
        """Return the space of the file system that it lies on."""

    def close_directories(self) -> None:
        """Close what is open only to be at hand."""

    def forget_directories(self) -> None:
        """Drop what is in memory only to be found sooner."""

    def close(self) -> None:
        """Give the descriptors back."""
