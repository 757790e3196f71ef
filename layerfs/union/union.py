"""The union: a read-only tree and an upper directory that takes all changes, as one file system.

What it is: every operation that a kernel asks of a file system, synchronous, by inode number. What it is not: a server;
:mod:`layerfs.mount.fuse` is one. The upper directory is what kernel overlayfs would have made of the same operations
with ``index=off,metacopy=off,redirect_dir=nofollow``, and can be mounted by it.

Where overlayfs with these options is no proper file system, the union is: hard links to one file stay links to one
file when it is copied up, and a file that is open for reading goes on to show what is written to it.
"""

from __future__ import annotations

from layerfs.union.move import MovePart

__all__ = ["Union"]


class Union(MovePart):
    """A union; see :class:`layerfs.union.base.UnionPart` for how it is made."""
