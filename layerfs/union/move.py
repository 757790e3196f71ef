"""Taking names away and moving them.

What hides something below leaves a whiteout, in one step with what it replaces. Directories that consist of lower ones
cannot be renamed (EXDEV, as overlayfs without ``redirect_dir``); programs then copy them. A directory that gets a
place where the lower tree has something is marked opaque first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from layerfs.linux.rename import EXCHANGE, NOREPLACE, WHITEOUT, rename
from layerfs.union.base import NO_ROOM
from layerfs.union.change import ChangePart
from layerfs.union.limit import is_reserved
from layerfs.union.listing import ListingPart
from layerfs.union.mark import open_inode
from layerfs.union.node import Node
from layerfs.union.upper import Upper

__all__ = ["MovePart"]


class MovePart(ChangePart, ListingPart):
    """unlink, rmdir and rename."""

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name of a file away.

        Raises:
            OSError: ENOENT, EISDIR, EROFS, ENOSPC.
        """
        directory = self._nodes[parent]
        upper = self._writable()
        node = self._lookup(directory, name)
        try:
            if node.is_directory:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._count_links(node)
            below = self._lower_has(directory, name)
            self._copy_up(directory)
            self._hold(upper, node)
            fd = upper.directory(directory)
            if below:
                upper.admit_whiteouts(directory)
            if not below:
                os.unlink(name, dir_fd=fd)
            elif node.upper:
                upper.cover(name, fd)
            else:
                upper.hide(name, directory)
            self._unname(node, directory, name)
        finally:
            self._release_hold(node)
            self._nodes.drop(node)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory.

        Raises:
            OSError: ENOENT, ENOTDIR, ENOTEMPTY, EROFS, ENOSPC.
        """
        directory = self._nodes[parent]
        upper = self._writable()
        node = self._lookup(directory, name)
        try:
            if not node.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not self._is_empty(node):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            below = self._lower_has(directory, name)
            self._copy_up(directory)
            self._hold(upper, node)
            fd = upper.directory(directory)
            if below or not node.upper:
                upper.admit_whiteouts(directory)
            if not node.upper:
                upper.hide(name, directory)
            elif below:
                upper.cover_directory(name, fd)
            else:
                upper.remove_directory(name, fd)
            self._unname(node, directory, name)
            upper.release(node)
        finally:
            self._release_hold(node)
            self._nodes.drop(node)

    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Move a name.

        Args:
            old_parent: the directory that it lies in.
            old_name: the name.
            new_parent: the directory that it goes to.
            new_name: its name there.
            flags: 0, ``NOREPLACE`` or ``EXCHANGE`` of :mod:`layerfs.linux.rename`.

        Raises:
            OSError: ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EXDEV for a directory of the lower tree, EINVAL for
                other flags, EROFS, ENOSPC.
        """
        if flags & ~(NOREPLACE | EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        upper = self._writable()
        source, target = self._nodes[old_parent], self._nodes[new_parent]
        old = self._lookup(source, old_name)
        new = None
        try:
            found = self._find(target, new_name)
            new = None if found is None else found[0]
            self._check_rename(old, new, flags)
            if new is old:
                return
            if target.is_gone:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._copy_up(source)
            self._copy_up(target)
            self._copy_up(old)
            if flags & EXCHANGE and new is not None:
                self._exchange(upper, source, old_name, old, target, new_name, new)
            else:
                if new is not None:
                    self._count_links(new)
                self._replace(upper, source, old_name, old, target, new_name, new)
        finally:
            self._nodes.drop(old)
            if new is not None:
                self._release_hold(new)
                self._nodes.drop(new)

    def _check_rename(self, old: Node, new: Node | None, flags: int) -> None:
        """Refuse what may not be."""
        if flags & NOREPLACE and new is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if flags & EXCHANGE and new is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if new is old:
            return
        if old.is_directory and old.lower is not None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if new is None:
            return
        if flags & EXCHANGE:
            if new.is_directory and new.lower is not None:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            return
        if new.is_directory and not old.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if old.is_directory and not new.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if new.is_directory and not self._is_empty(new):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def _exchange(
        self, upper: Upper, source: Node, old_name: bytes, old: Node, target: Node, new_name: bytes, new: Node
    ) -> None:
        """Let two names change places."""
        self._copy_up(new)
        for node, parent, name in ((old, source, old_name), (new, target, new_name)):
            if not node.is_directory and self._lower_has(parent, name) and upper.find(parent, name)[0] is None:
                self._relink(node, parent, name)  # what could not be done when it was looked up
        old_fd, new_fd = upper.directory(source), upper.directory(target)
        if old.is_directory and self._lower_has(target, new_name):
            upper.make_opaque(old_name, old_fd)
        if new.is_directory and self._lower_has(source, old_name):
            upper.make_opaque(new_name, new_fd)
        rename(old_fd, old_name, new_fd, new_name, EXCHANGE)
        nodes = self._nodes
        # Both new names first: a node without any would count as gone.
        source.pins += 1
        target.pins += 1
        self._move(old, source, old_name, target, new_name)
        self._move(new, target, new_name, source, old_name)
        source.pins -= 1
        target.pins -= 1
        nodes.drop(source)
        nodes.drop(target)

    def _replace(
        self, upper: Upper, source: Node, old_name: bytes, old: Node, target: Node, new_name: bytes, new: Node | None
    ) -> None:
        """Let a name take the place of another one, or of nothing."""
        old_below = self._lower_has(source, old_name)
        if new is not None:
            self._hold(upper, new)
        old_fd, new_fd = upper.directory(source), upper.directory(target)
        if old_below:
            upper.admit_whiteouts(source)
            if old.upper and not old.is_directory and upper.find(source, old_name)[0] is None:
                self._relink(old, source, old_name)  # what could not be done when it was looked up
        status, hidden = upper.find(target, new_name)
        if hidden and upper.plain_whiteouts and status is not None and stat.S_ISREG(status.st_mode):
            upper.cover(new_name, new_fd)  # a whiteout by xattr: such a one means nothing in other directories
        if new is not None and new.is_directory and new.upper:
            upper.clear_whiteouts(new_name, new_fd)
            # It hides all below now, also if the rename fails.
            new.lower = new.listing = None
        if old.is_directory and self._lower_has(target, new_name):
            upper.make_opaque(old_name, old_fd)
        if hidden and (old.is_directory or old_below):
            rename(old_fd, old_name, new_fd, new_name, EXCHANGE)
            if not old_below:
                os.unlink(old_name, dir_fd=old_fd)
        elif old_below:
            self._rename_leaving_whiteout(upper, old_fd, old_name, new_fd, new_name)
        else:
            os.rename(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        if new is not None:
            self._unname(new, target, new_name)
            upper.release(new)
        self._move(old, source, old_name, target, new_name)

    def _rename_leaving_whiteout(
        self, upper: Upper, old_fd: int, old_name: bytes, new_fd: int, new_name: bytes
    ) -> None:
        """Rename and leave a whiteout behind."""
        try:
            rename(old_fd, old_name, new_fd, new_name, WHITEOUT)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EPERM}:
                raise
            # Made beforehand, for there may be no room for it afterwards.
            temporary = upper.temporary()
            upper.make_whiteout(temporary, upper.work)
            try:
                os.rename(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
            except BaseException:
                os.unlink(temporary, dir_fd=upper.work)
                raise
            os.rename(temporary, old_name, src_dir_fd=upper.work, dst_dir_fd=old_fd)

    def _move(self, node: Node, source: Node, old_name: bytes, target: Node, new_name: bytes) -> None:
        """Note that a node has one name instead of another."""
        self._nodes.name(node, target, new_name)  # first: one without any would count as gone
        if node.is_directory:
            self._nodes.drop(source)
        else:
            self._nodes.unname(node, source, old_name)

    def _count_links(self, node: Node) -> None:
        """Copy a file with several names up before it loses one, so that the count of those that are left is right.

        Where there is no room for that, the name goes all the same: a right count is not worth a file that stays.
        """
        if node.upper or node.is_directory or self._lower.attributes(node.lower).nlink < 2:
            return
        if len(self._lower.paths(node.lower)) < 2:
            return  # the others lie outside of the tree
        try:
            self._copy_up(node)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    def _hold(self, upper: Upper, node: Node) -> None:
        """Keep an inode of the upper reachable that is about to lose the last name that is known of it."""
        if node.others is not None:
            with contextlib.suppress(OSError):  # there may be room by now; a name goes also if there is none
                self._link_others(node, node.others)
        if not node.upper or node.fd >= 0 or node.extra or not (node.lookups or self._born):
            return
        try:
            node.fd = self._held(upper, node)
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            # Without a descriptor nobody could reach it any more. If there is none even now, the name stays.
            self.close_spare()
            node.fd = self._held(upper, node)

    def _held(self, upper: Upper, node: Node) -> int:
        """Open an inode that shall stay open as long as it is used.

        Raises:
            OSError: EMFILE also if only those descriptors are left that serving needs.
        """
        place, name = upper.place(node)
        fd = open_inode(name, place)
        if is_reserved(fd):
            os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return fd

    def _release_hold(self, node: Node) -> None:
        """Let go of an inode that still has a name."""
        if node.fd >= 0 and node.parent is not None:
            os.close(node.fd)
            node.fd = -1

    def _unname(self, node: Node, parent: Node, name: bytes) -> None:
        """Note that a name is gone."""
        self._nodes.unname(node, parent, name)
        if node.is_gone and node.others is not None:
            node.others = None
            node.pins -= 1
        if node.is_gone and self._late is not None:
            self._late.drop(node.ino)
        if node.is_gone and self._born and node.fd >= 0:
            status = os.fstat(node.fd)
            if not status.st_nlink:
                # Its number on disk can be used again as soon as it is closed.
                self._born.pop(status.st_ino, None)
