"""Looking at the union: names, attributes, links, xattrs, space."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from errno import EINVAL, ENODATA, ENOTSUP

from layerfs.formats.xattr import ACCESS_ACL, ACL_NAMES, acl_of_owner
from layerfs.union.attribute import Attributes
from layerfs.union.base import UnionPart
from layerfs.union.mark import ESCAPE, FUSE_OVERLAYFS_OPAQUE, descriptor_path, list_xattrs, read_xattrs
from layerfs.union.node import Node

__all__ = ["ViewPart"]

#: So many inodes have to have lived before it pays to give memory back when most are forgotten.
_MANY = 4096
_KINDS = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")


class ViewPart(UnionPart):
    """What changes nothing."""

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Return the attributes of a name, which counts as one lookup; None if it means nothing.

        Raises:
            OSError: ENAMETOOLONG, ESTALE for a directory that nobody knows.
        """
        directory = self._nodes[parent]
        status = None
        if name in {b".", b".."}:
            node = directory if name == b"." or directory.parent is None else directory.parent
        else:
            found = self._find(directory, name)
            if found is None:
                return None
            node, status = found
        try:
            attributes = self._attributes(node, status)
        except BaseException:
            self._nodes.drop(node)
            raise
        node.lookups += 1
        return attributes

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Take back lookups: pairs of number and count."""
        self._most = max(self._most, len(self._nodes))
        for ino, count in forgotten:
            self._nodes.forget(ino, count)
        if self._most > _MANY and len(self._nodes) < self._most // 8:
            self._let_go()

    def getattr(self, ino: int) -> Attributes:
        """Return the attributes of an inode. Raises ESTALE."""
        node = self._nodes.get(ino)
        if node is not None:
            return self._attributes(node)
        # After each first read the kernel asks anew, for the atime, which those of the lower tree do not have.
        found = self._lower.attributes(self._nodes.reference(ino))
        return self._show(found) if self._alters else found

    def readlink(self, ino: int) -> bytes:
        """Return the target of a symbolic link. Raises EINVAL for anything else."""
        node = self._nodes.look(ino)
        if node.kind != stat.S_IFLNK:
            raise OSError(EINVAL, os.strerror(EINVAL))
        if not node.upper or self._upper is None:
            return self._lower.readlink(node.lower)
        if node.fd >= 0:
            return os.readlink(b"", dir_fd=node.fd)
        fd, name = self._upper.place(node)
        return os.readlink(name, dir_fd=fd)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Return an xattr; overlayfs's own do not exist, those of an overlay inside this one do.

        Raises:
            OSError: ENODATA, EOPNOTSUPP for a name of no known kind.
        """
        value = self.find_xattr(ino, name)
        if value is None:
            raise OSError(ENODATA, os.strerror(ENODATA))
        return value

    def find_xattr(self, ino: int, name: bytes) -> bytes | None:
        """As :meth:`getxattr`, but None where that is ENODATA: every write asks, and an exception costs more."""
        value = self._own_xattr(self._nodes.look(ino), name)
        if value is None:
            if name.startswith(_KINDS):
                return None
            raise OSError(ENOTSUP, os.strerror(ENOTSUP))
        return self._owners.shown_acl(value) if self._owners is not None and name in ACL_NAMES else value

    def _own_xattr(self, node: Node, name: bytes) -> bytes | None:
        """Return an xattr with owners as they are stored, or None."""
        if node.bare:
            return None
        stored = self._stored_name(name)
        if node.upper and self._upper is not None:
            with self._upper.inode(node) as fd:
                path = descriptor_path(fd)
                # Every write asks for the capabilities of a file that hardly ever has any xattr.
                if not list_xattrs(path):
                    node.bare = True
                    return None
                try:
                    value = os.getxattr(path, stored)
                except OSError as error:
                    if error.errno != ENODATA:
                        raise
                    return None
            if stored == ACCESS_ACL and self._upper.override:
                # The real one lets the real owner read and write in any case.
                return acl_of_owner(value, self._attributes(node).mode)
            return value
        xattrs = self._lower.xattrs(node.lower)
        if not xattrs:
            node.bare = True
        return xattrs.get(stored)

    def listxattr(self, ino: int, is_privileged: Callable[[], bool]) -> list[bytes]:
        """Return the names of the xattrs that a caller may see.

        Args:
            ino: of what.
            is_privileged: whether the caller may see ``trusted.*``; asked only where there are any.
        """
        node = self._nodes.look(ino)
        if node.bare:
            return []
        found = []
        for name in self._raw_xattrs(node):
            shown = self._shown_name(name)
            if shown is not None and (not shown.startswith(b"trusted.") or is_privileged()):
                found.append(shown)
        return found

    def statfs(self) -> os.statvfs_result:
        """Return the space that is left for changes."""
        if self._upper is not None:
            return os.fstatvfs(self._upper.root)
        return self._lower.statfs()

    def _raw_xattrs(self, node: Node) -> dict[bytes, bytes]:
        """Return all xattrs as they are stored."""
        if node.upper and self._upper is not None:
            with self._upper.inode(node) as fd:
                return read_xattrs(fd)
        return self._lower.xattrs(node.lower)

    def _shown_name(self, stored: bytes) -> bytes | None:
        """Return what a stored xattr is called in the mount; None for what is not shown."""
        if stored.startswith(self._prefix):
            rest = stored[len(self._prefix) :]
            return self._prefix + rest[len(ESCAPE) :] if rest.startswith(ESCAPE) else None
        return None if self._is_own(stored) else stored

    def _is_own(self, name: bytes) -> bool:
        """Whether an xattr means something to the union, though it is not named as overlayfs's marks are."""
        # fuse-overlayfs's mark is understood, and so must not be made by those inside.
        if self._upper is None:
            return name == FUSE_OVERLAYFS_OPAQUE
        return name == self._upper.override or (name == FUSE_OVERLAYFS_OPAQUE and self._upper.foreign_marks)

    def _stored_name(self, shown: bytes) -> bytes:
        """Return how an xattr is stored: those that would be marks of this overlay get another name.

        Raises:
            OSError: EOPNOTSUPP for what belongs to the union alone.
        """
        if shown.startswith(self._prefix):
            return self._prefix + ESCAPE + shown[len(self._prefix) :]
        if self._is_own(shown):
            raise OSError(ENOTSUP, os.strerror(ENOTSUP))
        return shown
