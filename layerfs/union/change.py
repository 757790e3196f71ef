"""Making new inodes and changing the attributes of old ones.

A new inode is made in its place when nothing lies there. Where a whiteout does, it is made in the work directory and
put over the whiteout by one rename, so that the lower file that the whiteout hides never shows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from layerfs.formats.xattr import ACCESS_ACL, ACL_NAMES, mode_of_acl
from layerfs.linux.rename import EXCHANGE, rename
from layerfs.union.attribute import Attributes
from layerfs.union.base import Caller
from layerfs.union.file import FilePart
from layerfs.union.flags import FlagPart
from layerfs.union.mark import SET_ID, descriptor_path, get_xattr, list_xattrs, set_limited_acl
from layerfs.union.node import Content, Node
from layerfs.union.upper import Upper
from layerfs.union.view import ViewPart

__all__ = ["ChangePart", "Changes"]

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT_ACL = b"system.posix_acl_default"
#: Makes an inode of a name in a directory.
_Make = Callable[[bytes, int], None]


@dataclass(slots=True)
class Changes:
    """What is to change of an inode; None leaves it. Times in nanoseconds.

    ``strip`` says that whoever changes the size loses the set-ID bits of the file by this.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    strip: bool = False
    atime_ns: int | None = None
    mtime_ns: int | None = None


class ChangePart(ViewPart, FilePart, FlagPart):
    """New files, directories, links and devices; chmod, chown, truncate, utimens; xattrs."""

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a regular file, which will be written next.

        Returns:
            Its attributes; counts as a lookup.

        Raises:
            OSError: EEXIST, EROFS, ENOSPC, ENOENT for a directory that was removed.

        Atomicity: the name is there, complete, or not.
        """
        opened: list[int] = []
        flags = _NEW | self._writable().quiet

        def make(at: bytes, dir_fd: int) -> None:
            opened.append(os.open(at, flags, stat.S_IMODE(mode), dir_fd=dir_fd))

        try:
            node, status = self._make(parent, name, stat.S_IFREG | mode, caller, make)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        self._keep(node, Content(opened[0], 0, None, owned=True, writable=True))
        try:
            # Every write asks for the capabilities of the file; asking here costs one call.
            node.bare = not list_xattrs(opened[0])
        except BaseException:
            self._nodes.drop(node)
            raise
        return self._entered(node, status)

    def tmpfile(self, parent: int, mode: int, caller: Caller) -> Attributes:
        """Make a regular file without a name, as O_TMPFILE does; counts as a lookup. :meth:`link` can give it one.

        Args:
            parent: the directory whose owner and default ACL it takes after, which is copied up first.
            mode: permission bits.
            caller: its owner.

        Raises:
            OSError: EOPNOTSUPP where the upper's file system has no such files, EROFS, ENOSPC, ENOENT.
        """
        directory = self._nodes[parent]
        upper = self._writable()
        if directory.is_gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._copy_up(directory)
        self._set_umask(caller)
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | upper.quiet
        fd = os.open(b".", flags, stat.S_IMODE(mode), dir_fd=upper.directory(directory))
        content = Content(fd, 0, None, owned=True, writable=True)
        try:
            uid, gid = caller.uid, caller.gid
            if self._owners is not None:
                uid, gid = self._owners.stored(uid, gid)
            above = upper.attributes(directory)
            if above.mode & stat.S_ISGID:
                gid = above.gid
            upper.dress_open(fd, os.fstat(fd).st_mode | mode & SET_ID, uid, gid)
            status = os.fstat(fd)
            node = Node(self._number(status), stat.S_IFREG, None, upper=True)
            node.fd = os.open(descriptor_path(fd), os.O_PATH | os.O_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise
        self._nodes.add_nameless(node)
        self._keep(node, content)
        return self._entered(node, status)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        """Make a file, device, fifo or socket; counts as a lookup.

        Raises:
            OSError: EPERM for the device that is a whiteout, else as :meth:`create`.
        """
        if stat.S_ISREG(mode):
            return self.create(parent, name, stat.S_IMODE(mode), caller)
        if stat.S_ISCHR(mode) and rdev == 0:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        def make(at: bytes, dir_fd: int) -> None:
            os.mknod(at, mode, rdev, dir_fd=dir_fd)

        return self._entered(*self._make(parent, name, mode, caller, make))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a directory; counts as a lookup. Raises as :meth:`create`."""

        def make(at: bytes, dir_fd: int) -> None:
            os.mkdir(at, stat.S_IMODE(mode), dir_fd=dir_fd)

        return self._entered(*self._make(parent, name, stat.S_IFDIR | mode, caller, make))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link; counts as a lookup. Raises as :meth:`create`."""

        def make(at: bytes, dir_fd: int) -> None:
            os.symlink(target, at, dir_fd=dir_fd)

        return self._entered(*self._make(parent, name, stat.S_IFLNK | 0o777, caller, make))

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        """Give a file another name; counts as a lookup.

        Raises:
            OSError: EEXIST, EPERM for a directory, ENOENT for a file whose last name was removed, EMLINK, EROFS,
                ENOSPC.
        """
        node = self._nodes[ino]
        directory = self._nodes[parent]
        if node.is_directory:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        upper, covered = self._prepare(directory, name)
        if node.is_gone and node.fd < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._copy_up(node)
        # The kernel tells a file that never had a name from one that lost its last one.
        source, first = (-1, descriptor_path(node.fd)) if node.is_gone else upper.place(node)
        fd = upper.directory(directory)
        if not covered:
            try:
                os.link(first, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=node.is_gone)
            except FileExistsError:
                # A whiteout that hides nothing: the lower tree has lost the name since it was made.
                covered = upper.find(directory, name)[1]
                if not covered:
                    raise
        if covered:
            temporary = upper.temporary()
            os.link(first, temporary, src_dir_fd=source, dst_dir_fd=upper.work, follow_symlinks=node.is_gone)
            try:
                os.rename(temporary, name, src_dir_fd=upper.work, dst_dir_fd=fd)
            except BaseException:
                os.unlink(temporary, dir_fd=upper.work)
                raise
        self._nodes.name(node, directory, name)
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1
        return self._entered(node)

    def setattr(self, ino: int, changes: Changes) -> Attributes:
        """Change attributes and return the new ones; the inode is copied up first.

        Args:
            ino: the inode.
            changes: what is to change.

        Raises:
            OSError: EROFS, ENOSPC, EIO, EPERM, EINVAL, EFBIG.
        """
        node = self._nodes[ino]
        upper = self._writable()
        self._copy_up(node, data=changes.size != 0)
        if changes.size is not None:
            os.ftruncate(self._written(node).fd, changes.size)
            if changes.strip and changes.mode is None:
                self._strip_mode(node, self._attributes(node).mode)
        if changes.mode is not None or changes.uid is not None or changes.gid is not None:
            uid, gid = changes.uid, changes.gid
            if self._owners is not None:
                stored = self._owners.stored(-1 if uid is None else uid, -1 if gid is None else gid)
                uid, gid = None if uid is None else stored[0], None if gid is None else stored[1]
            upper.change(node, mode=changes.mode, uid=uid, gid=gid)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(node, upper, changes)
        return self._attributes(node)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, *, strip_group: bool = False) -> None:
        """Set an xattr; the inode is copied up first.

        Args:
            ino: the inode.
            name: as the mount shows it.
            value: what it is to be.
            flags: XATTR_CREATE, XATTR_REPLACE or 0.
            strip_group: whether the set-group-ID bit goes: an ACL was set by one who is not in the group.

        Raises:
            OSError: EEXIST, ENODATA, EOPNOTSUPP, EPERM, ENOSPC, EROFS, ERANGE, E2BIG.
        """
        node = self._nodes[ino]
        upper = self._writable()
        stored = self._stored_name(name)
        if self._owners is not None and stored in ACL_NAMES:
            value = self._owners.stored_acl(value)
        self._copy_up(node)
        node.bare = False
        if stored == ACCESS_ACL and upper.override and node.kind in {stat.S_IFREG, stat.S_IFDIR}:
            self._set_overridden_acl(node, upper, value, flags)
        else:
            with upper.inode(node) as fd:
                os.setxattr(descriptor_path(fd), stored, value, flags)
        if strip_group:
            mode = self._attributes(node).mode
            if mode & stat.S_ISGID:
                upper.change(node, mode=mode & ~stat.S_ISGID, uid=None, gid=None)

    def _set_overridden_acl(self, node: Node, upper: Upper, value: bytes, flags: int) -> None:
        """Set an ACL, and the mode that goes with it: where that is kept beside the file the kernel cannot do so.

        One that says no more than a mode becomes just that, as in every file system (fs/posix_acl.c,
        posix_acl_equiv_mode); cp -p and mv set such.
        """
        meant = mode_of_acl(value)
        if meant is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        mode, is_more = meant
        with upper.inode(node) as fd:
            path = descriptor_path(fd)
            if is_more or flags:
                os.setxattr(path, ACCESS_ACL, value, flags)
            if not is_more:
                try:
                    os.removexattr(path, ACCESS_ACL)
                except OSError as error:
                    if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
                        raise
        old = self._attributes(node).mode
        upper.change(node, mode=stat.S_IMODE(old) & ~0o777 | mode, uid=None, gid=None)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an xattr; the inode is copied up first if it has one of that name.

        Raises:
            OSError: ENODATA, EPERM, EROFS.
        """
        node = self._nodes[ino]
        upper = self._writable()
        stored = self._stored_name(name)
        if not node.upper and stored not in self._lower.xattrs(node.lower):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        self._copy_up(node)
        with upper.inode(node) as fd:
            os.removexattr(descriptor_path(fd), stored)

    def _entered(self, node: Node, status: os.stat_result | None = None) -> Attributes:
        """Return the attributes of an inode that the kernel is told of."""
        try:
            found = self._attributes(node, status)
        except BaseException:
            self._nodes.drop(node)
            raise
        node.lookups += 1
        return found

    def _prepare(self, parent: Node, name: bytes) -> tuple[Upper, bool]:
        """Make sure that a name is free in a directory of the upper.

        Returns:
            The upper, and whether a whiteout lies there.

        Raises:
            OSError: EEXIST, ENAMETOOLONG, EROFS, ENOENT.
        """
        upper = self._writable()
        if len(name) > self._name_max:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if parent.is_gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        below = self._lower_has(parent, name)
        if not parent.upper:
            if below:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._copy_up(parent)
            return upper, False
        if not below and not parent.marked:
            return upper, False  # if something is there after all, the call itself says so
        status, hidden = upper.find(parent, name)
        if hidden:
            return upper, True
        if status is not None or below:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return upper, False

    def _make(self, parent: int, name: bytes, mode: int, caller: Caller, make: _Make) -> tuple[Node, os.stat_result]:
        """Make an inode, give it its owner, and put it in its place."""
        directory = self._nodes[parent]
        upper, covered = self._prepare(directory, name)
        fd = upper.directory(directory)
        if not covered:
            self._set_umask(caller)
            try:
                make(name, fd)
            except FileExistsError:
                # A whiteout that hides nothing: the lower tree has lost the name since it was made.
                if not upper.find(directory, name)[1]:
                    raise
            else:
                try:
                    self._own(upper, directory, fd, name, mode, caller, in_place=True)
                except BaseException:
                    (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=fd)
                    raise
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                return self._find_upper(directory, name, status), status
        self._make_over(upper, directory, fd, name, mode, caller, make)
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return self._find_upper(directory, name, status), status

    def _make_over(
        self, upper: Upper, directory: Node, fd: int, name: bytes, mode: int, caller: Caller, make: _Make
    ) -> None:
        """Make an inode in the work directory and put it over a whiteout."""
        temporary = upper.temporary()
        is_directory = stat.S_ISDIR(mode)
        remove = os.rmdir if is_directory else os.unlink
        with upper.inode(directory) as top:
            acl = get_xattr(top, _DEFAULT_ACL)
        self._set_umask(caller)
        work, nest = upper.work, None
        if acl is not None:
            # The kernel applies a default ACL to what is made in a directory that has it: make one such directory.
            nest = upper.temporary()
            os.mkdir(nest, 0o700, dir_fd=upper.work)
            work = os.open(nest, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=upper.work)
        try:
            if acl is not None:
                try:
                    os.setxattr(descriptor_path(work), _DEFAULT_ACL, acl)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    set_limited_acl(descriptor_path(work), _DEFAULT_ACL, acl)
            make(temporary, work)
            try:
                self._own(upper, directory, work, temporary, mode, caller, in_place=False)
                if is_directory:
                    upper.make_opaque(temporary, work)
                    rename(work, temporary, fd, name, EXCHANGE)
                    remove = os.unlink  # it is the whiteout now
                    os.unlink(temporary, dir_fd=work)
                else:
                    os.rename(temporary, name, src_dir_fd=work, dst_dir_fd=fd)
            except BaseException:
                remove(temporary, dir_fd=work)
                raise
        finally:
            if nest is not None:
                if work != upper.work:
                    os.close(work)
                os.rmdir(nest, dir_fd=upper.work)

    def _set_umask(self, caller: Caller) -> None:
        """Let the upper's file system apply the caller's umask, or a default ACL instead of it."""
        self._use_umask(caller.umask if self._raw_umask else 0)

    def _own(
        self, upper: Upper, parent: Node, fd: int, name: bytes, mode: int, caller: Caller, *, in_place: bool
    ) -> None:
        """Give a new inode the owner that it would have got from the kernel."""
        uid, gid = caller.uid, caller.gid
        if self._owners is not None:
            uid, gid = self._owners.stored(uid, gid)
        plain = in_place and not upper.override
        if plain and uid == 0 and gid == 0:
            return
        above = upper.attributes(parent)
        if above.mode & stat.S_ISGID:
            gid = above.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        if self._raw_umask and not stat.S_ISLNK(mode):
            # The file system applied the umask or the ACL; only the bits that chown takes away matter here.
            found = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            mode = found | mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
        upper.dress(name, fd, mode, uid, gid)

    def _set_times(self, node: Node, upper: Upper, changes: Changes) -> None:
        """Set atime and mtime; the one that is not given stays."""
        atime, mtime = changes.atime_ns, changes.mtime_ns
        if atime is None or mtime is None:
            old = upper.status(node)
            atime = old.st_atime_ns if atime is None else atime
            mtime = old.st_mtime_ns if mtime is None else mtime
        if node.content is not None:
            os.utime(node.content.fd, ns=(atime, mtime))
        elif node.fd >= 0:
            os.utime(descriptor_path(node.fd), ns=(atime, mtime))
        else:
            fd, name = upper.place(node)
            os.utime(name, ns=(atime, mtime), dir_fd=fd, follow_symlinks=False)
