"""The flags that lsattr shows and chattr sets, by inode number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from layerfs.linux.inode_flags import FlagForm, read_flags, with_flags, write_flags
from layerfs.union.base import UnionPart
from layerfs.union.mark import descriptor_path
from layerfs.union.node import Node
from layerfs.union.upper import Upper

__all__ = ["FlagPart"]

_OPENING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class FlagPart(UnionPart):
    """Inode flags of regular files and directories, kept by the file system of the upper directory.

    Overlayfs keeps append-only and immutable in an xattr of its own; here the file has them itself, so the file system
    below enforces them, whoever mounts the upper directory next.
    """

    def flags(self, ino: int, form: FlagForm) -> bytes:
        """Return the flags of an inode; what lies in a lower tree has none.

        Raises:
            OSError: ENOTTY, EOPNOTSUPP where the upper's file system has none.
        """
        node = self._nodes.look(ino)
        if not node.upper or self._upper is None:
            return bytes(form.size)
        with self._readable(node, self._upper) as fd:
            return read_flags(fd, form)

    def set_flags(self, ino: int, form: FlagForm, value: bytes) -> None:
        """Set all flags of an inode, which is copied up first. Whether the caller may is for the server to know.

        Raises:
            OSError: EOPNOTSUPP, ENOTTY, EPERM, EROFS, ENOSPC.
        """
        node = self._nodes[ino]
        upper = self._writable()
        is_new = not node.upper
        self._copy_up(node)
        with self._readable(node, upper) as fd:
            if is_new:
                # The caller was told of none. Some are the file system's own (extents), and mean work if they go.
                value = with_flags(value, read_flags(fd, form))
            write_flags(fd, form, value)
        upper.flags_changed(ino)
        node.close_content()  # whether it may be written is found out when it is opened

    @contextlib.contextmanager
    def _readable(self, node: Node, upper: Upper) -> Iterator[int]:
        """Hold a descriptor for reading of an inode of the upper, whose kind allows to open it."""
        with upper.inode(node) as held:
            fd = os.open(descriptor_path(held), _OPENING)
        try:
            yield fd
        finally:
            os.close(fd)
