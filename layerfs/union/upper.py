"""The upper directory of a union, in overlayfs's own form, and the work directory beside it.

Every call is relative to a held descriptor of a directory inside the upper and names one component, never following a
link; what has no such form goes through ``/proc/self/fd`` of an O_PATH descriptor. So nothing in the upper, whatever a
container put there, leads out of it or back into the mount, and no path is too long.

Where the process may not give files away (``override``), owner and mode are kept in the xattr
``user.containers.override_stat``, and the file itself stays readable and writable for its owner.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from layerfs.formats.whiteout import format_override, usable_mode
from layerfs.linux.inode_flags import is_append_only
from layerfs.linux.mount_api import clone_tree
from layerfs.linux.nameless import link_open_file
from layerfs.linux.process import another_owner
from layerfs.linux.rename import EXCHANGE, rename
from layerfs.linux.safe_path import remove_tree
from layerfs.linux.whiteout_xattr import has_whiteout_xattr
from layerfs.union.attribute import Attributes, from_status, overridden
from layerfs.union.limit import descriptor_share
from layerfs.union.mark import (
    OVERRIDE_XATTR,
    SET_ID,
    descriptor_path,
    get_xattr,
    is_whiteout,
    open_below,
    open_inode,
    open_quietly,
    read_opaque,
)
from layerfs.union.node import ROOT, Node
from layerfs.union.whiteouts import Whiteouts

__all__ = ["Upper"]

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: What file systems and kernels answer that make no files without a name, or give them none without a privilege.
_NO_LATER_NAME = frozenset(
    {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EXDEV}
)


class Upper:
    """The upper and the work directory.

    Attributes:
        root: O_PATH descriptor of the upper directory.
        work: descriptor of the directory where things are made before they get their place.
        prefix: of the xattrs that are marks.
        override: the xattr that keeps owners and modes, or None where the files themselves do.
        device: st_dev of the upper directory.
        name_max: the longest name that it can hold.
        owner: user and group that a new file in the work directory has by itself.
        quiet: the flag with which files are opened whose atimes are to stay as they are, or 0.
        nameless: whether files can be made without a name and get one later.
        plain_whiteouts: whether whiteouts are devices; else empty files with an xattr, as in nested overlays.
        removable: numbers of directories that are known to let names go, since they are not append-only.
        alone: whether it is reached apart from what is mounted below it, and on top of it.
        places: device and inode number of the upper and the work directory.
    """

    def __init__(
        self, upper: str | bytes, work: str | bytes, prefix: bytes, *, noatime: bool = False,
        override: bytes | None = None, foreign_marks: bool = True,
    ) -> None:  # fmt: skip
        """Open both, and clear what an earlier mount left in the work directory.

        Args:
            upper: the one.
            work: the other.
            prefix: of the xattrs that are marks.
            noatime: whether reading leaves the atimes of files and directories alone.
            override: the xattr that is to keep owners and modes; None for none, unless this process may give no file
                away.
            foreign_marks: whether what fuse-overlayfs has marked opaque is.

        Raises:
            OSError: EINVAL if an overlay of the kernel with the option ``volatile`` may have lost some of what was
                written to the upper, EBUSY if another union uses the work directory, EXDEV if the two lie on different
                file systems, else what opening or clearing them answers.
        """
        self.prefix = prefix
        self.foreign_marks = foreign_marks
        self.quiet = os.O_NOATIME if noatime else 0
        self._fds: OrderedDict[Node, int] = OrderedDict()
        #: Directories held open; climbing to others costs one open per level.
        self._kept = descriptor_share()
        self._serial = 0
        self.removable: set[int] = set()
        with contextlib.ExitStack() as stack:
            root, lock, self.alone = _open_alone(upper, work)
            self.root, self._lock = _opened(stack, root), _opened(stack, lock)
            self._upper_lock = _opened(stack, os.open(b".", _READABLE, dir_fd=self.root))
            for fd, place in ((self._lock, work), (self._upper_lock, upper)):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OSError(errno.EBUSY, "directory is in use by another mount", place) from None
            self.places = [(status.st_dev, status.st_ino) for status in map(os.fstat, (self.root, self._lock))]
            self.device = os.fstat(self.root).st_dev
            if os.fstat(self._lock).st_dev != self.device:
                raise OSError(errno.EXDEV, "upper and work directory are on different file systems", work)
            for part in (b"work", b"work/incompat"):
                _open_up(part, self._lock)
            if _exists(b"work/incompat/volatile", self._lock):
                # As the kernel does: that the marker is still there says that nobody has looked (fs/overlayfs/super.c).
                raise OSError(
                    errno.EINVAL, "an overlay with the option volatile was mounted; if what it wrote is whole, remove",
                    os.path.join(os.fsencode(work), b"work/incompat/volatile"),
                )  # fmt: skip
            remove_tree(b"work", dir_fd=self._lock, missing_ok=True)
            os.mkdir(b"work", 0o700, dir_fd=self._lock)
            self.work = _opened(stack, os.open(b"work", _DIRECTORY, dir_fd=self._lock))
            self._disinherit(descriptor_path(self.work))
            self.override = override or (None if self._may_give_away() else OVERRIDE_XATTR)
            self.name_max: int = os.fstatvfs(self.root).f_namemax
            self._whiteouts = Whiteouts(self.work, prefix, self.temporary)
            self.plain_whiteouts = self._whiteouts.plain
            self.nameless = self._may_name_later()
            stack.pop_all()

    def close(self) -> None:
        """Close all descriptors; the work directory is free again."""
        self.close_directories()
        self._whiteouts.drop()
        for fd in (self.work, self._lock, self._upper_lock, self.root):
            os.close(fd)

    def directory(self, node: Node) -> int:
        """Return an O_PATH descriptor of a directory of the upper; it stays open until many others were used."""
        fd = self._fds.get(node)
        if fd is not None:
            self._fds.move_to_end(node)
            return fd
        if node.ino == ROOT:
            return self.root
        if node.fd >= 0:
            return node.fd
        missing = [node]
        above = node.parent
        while above is not None and above.ino != ROOT and above not in self._fds:
            missing.append(above)
            above = above.parent
        if above is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        fd = open_below(self.root if above.ino == ROOT else self._fds[above], [step.name for step in reversed(missing)])
        self.hold(node, fd)
        return fd

    def hold(self, node: Node, fd: int) -> None:
        """Take over an O_PATH descriptor of a directory, and close one that was not used for long if there are many."""
        self._fds[node] = fd
        if len(self._fds) > self._kept:
            os.close(self._fds.popitem(last=False)[1])

    def release(self, node: Node) -> None:
        """Close the descriptor of a directory that is gone, or that nobody knows any more."""
        fd = self._fds.pop(node, -1)
        if fd >= 0:
            os.close(fd)

    def close_directories(self) -> None:
        """Close what is open only to be at hand."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def place(self, node: Node) -> tuple[int, bytes]:
        """Return descriptor and name by which at-calls reach an inode that has a name.

        Raises:
            OSError: ESTALE if it has none.
        """
        if node.ino == ROOT:
            return self.root, b"."
        if node.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.directory(node.parent), node.name

    def open(self, name: bytes, flags: int, dir_fd: int | None = None) -> int:
        """Open something of the upper directory to read it, and perhaps to write it too."""
        return (open_quietly if self.quiet else os.open)(name, flags, dir_fd=dir_fd)

    def find(self, parent: Node, name: bytes) -> tuple[os.stat_result | None, bool]:
        """Look at a name in the upper: its status and whether it is a whiteout; None if it is not there."""
        fd = self.directory(parent)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None, False
        if is_whiteout(status):
            return status, True
        marked = parent.marked and not status.st_size and stat.S_ISREG(status.st_mode)
        return status, marked and has_whiteout_xattr(name, fd, self.prefix)

    def status(self, node: Node) -> os.stat_result:
        """Stat an inode."""
        content = node.content
        fd = node.fd if content is None else content.fd
        if fd < 0 and node.kind == stat.S_IFDIR:
            fd = self._fds.get(node, -1)
        if fd >= 0:
            return os.fstat(fd)
        fd, name = self.place(node)
        return os.stat(name, dir_fd=fd, follow_symlinks=False)

    @contextlib.contextmanager
    def inode(self, node: Node) -> Iterator[int]:
        """Hold a descriptor of an inode for a while, which may be an O_PATH one."""
        held = node.fd if node.content is None else node.content.fd
        if held >= 0:
            yield held
            return
        place, name = self.place(node)
        fd = open_inode(name, place)
        try:
            yield fd
        finally:
            os.close(fd)

    def attributes(
        self, node: Node, status: os.stat_result | None = None, nlink: int | None = None
    ) -> Attributes:  # fmt: skip
        """Return what stat says of an inode, the owner and mode that are meant included.

        Args:
            node: the inode.
            status: its status, if that is at hand.
            nlink: the number of links that is meant, if not that of the inode.
        """
        found = from_status(node.ino, status or self.status(node), nlink)
        if self.override and node.kind in {stat.S_IFREG, stat.S_IFDIR}:
            with self.inode(node) as fd:
                return overridden(found, get_xattr(fd, self.override))
        return found

    def dress(self, name: bytes, dir_fd: int, mode: int, uid: int, gid: int) -> None:
        """Give a new inode its owner and, where that takes them away or cannot be had, its mode bits.

        Args:
            name: its name.
            dir_fd: the directory that it lies in.
            mode: with type bits.
            uid: owner.
            gid: group.
        """
        if not self.override:
            os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
            if mode & SET_ID and not stat.S_ISLNK(mode):
                self.chmod(name, dir_fd, mode)
            return
        if stat.S_IFMT(mode) in {stat.S_IFREG, stat.S_IFDIR}:
            fd = open_inode(name, dir_fd)
            try:
                self.keep_owner(descriptor_path(fd), mode, uid, gid)
            finally:
                os.close(fd)

    def dress_open(self, fd: int, mode: int, uid: int, gid: int) -> None:
        """As :meth:`dress`, for a new regular file that is open and has no name."""
        if self.override:
            self.keep_owner(fd, mode, uid, gid)
            return
        os.fchown(fd, uid, gid)
        if mode & SET_ID:
            os.fchmod(fd, stat.S_IMODE(mode))

    def chmod(self, name: bytes, dir_fd: int, mode: int) -> None:
        """Set the mode bits of an inode that is no link."""
        fd = open_inode(name, dir_fd)
        try:
            os.chmod(descriptor_path(fd), stat.S_IMODE(mode))
        finally:
            os.close(fd)

    def change(self, node: Node, *, mode: int | None, uid: int | None, gid: int | None) -> None:
        """Change mode bits, owner or group of an inode; the owner first, because that takes the set-ID bits away."""
        if self.override:
            if node.kind not in {stat.S_IFREG, stat.S_IFDIR}:
                if mode is not None and node.kind != stat.S_IFLNK:  # which can have no such xattr
                    with self.inode(node) as fd:
                        os.chmod(descriptor_path(fd), stat.S_IMODE(mode))
                return
            old = self.attributes(node)
            bits = old.mode if mode is None else mode
            if mode is None and node.kind == stat.S_IFREG:
                bits &= ~SET_ID
            with self.inode(node) as fd:
                self.keep_owner(
                    descriptor_path(fd), node.kind | stat.S_IMODE(bits),
                    old.uid if uid is None else uid, old.gid if gid is None else gid,
                )  # fmt: skip
            return
        if uid is not None or gid is not None:
            owner, group = -1 if uid is None else uid, -1 if gid is None else gid
            if node.content is not None:
                os.fchown(node.content.fd, owner, group)
            elif node.fd >= 0:
                os.chown(descriptor_path(node.fd), owner, group)
            else:
                fd, name = self.place(node)
                os.chown(name, owner, group, dir_fd=fd, follow_symlinks=False)
        if mode is not None and node.content is not None:
            os.fchmod(node.content.fd, stat.S_IMODE(mode))
        elif mode is not None:
            with self.inode(node) as fd:
                os.chmod(descriptor_path(fd), stat.S_IMODE(mode))

    def keep_owner(self, path: bytes | int, mode: int, uid: int, gid: int) -> None:
        """Keep owner and mode in the xattr, and keep the inode usable for its real owner.

        Args:
            path: of the inode, or a descriptor that is more than an O_PATH one.
            mode: with type bits.
            uid: owner.
            gid: group.
        """
        assert self.override is not None
        os.chmod(path, usable_mode(mode))
        os.setxattr(path, self.override, format_override(uid, gid, mode))

    def temporary(self) -> bytes:
        """Return a name that is free in the work directory."""
        self._serial += 1
        return b"#%x" % self._serial

    def place_copy(self, copy: bytes, fd: int, parent: Node, name: bytes) -> tuple[int, os.stat_result]:
        """Give what :func:`layerfs.union.copy_up.copy_inode` made the name of its original, in one step.

        Args:
            copy: its name in the work directory, or empty.
            fd: its descriptor.
            parent: the directory, which is in the upper.
            name: the name.

        Returns:
            What :meth:`restore_times` takes.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO; EEXIST if somebody else has put something there.
        """
        above = self.directory(parent)
        times = os.fstat(above)
        if copy:
            os.rename(copy, name, src_dir_fd=self.work, dst_dir_fd=above)
        else:
            link_open_file(fd, above, name)
        return above, times

    def restore_times(self, directory: int, before: os.stat_result) -> None:
        """Set the times of a directory back: nothing in it has changed for those who look through the union."""
        try:  # noqa: SIM105 - half a microsecond of each copy
            os.utime(b".", ns=(before.st_atime_ns, before.st_mtime_ns), dir_fd=directory)
        except OSError:
            pass  # what was put there is in its place by now

    def drop_copy(self, copy: bytes) -> None:
        """Remove what :func:`layerfs.union.copy_up.copy_inode` made in the work directory; a directory is empty yet."""
        try:
            os.unlink(copy, dir_fd=self.work)
        except IsADirectoryError:
            os.rmdir(copy, dir_fd=self.work)

    def hide(self, name: bytes, directory: Node) -> None:
        """Put a whiteout where the upper has nothing, in one step.

        Raises:
            OSError: EPERM in a directory that is append-only: for the file system a whiteout is only a new name there.
        """
        dir_fd = self.directory(directory)
        if directory.ino not in self.removable:
            if _is_append_only(dir_fd):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            self.removable.add(directory.ino)
        if self.plain_whiteouts:
            self.make_whiteout(name, dir_fd)
        else:
            self.cover(name, dir_fd)

    def flags_changed(self, ino: int) -> None:
        """Take note that an inode's flags are others."""
        self.removable.discard(ino)

    def make_whiteout(self, name: bytes, dir_fd: int) -> None:
        """Make a whiteout; see :class:`layerfs.union.whiteouts.Whiteouts`."""
        self._whiteouts.make(name, dir_fd)

    def admit_whiteouts(self, directory: Node) -> None:
        """Prepare a directory for a whiteout: those that are xattrs count only where the directory says so."""
        if not self.plain_whiteouts and not directory.marked:
            os.setxattr(descriptor_path(self.directory(directory)), self.prefix + b"opaque", b"x")
            directory.marked = True

    def cover(self, name: bytes, dir_fd: int) -> None:
        """Put a whiteout in place of what is no directory, in one step."""
        temporary = self.temporary()
        self.make_whiteout(temporary, self.work)
        try:
            os.rename(temporary, name, src_dir_fd=self.work, dst_dir_fd=dir_fd)
        except BaseException:
            os.unlink(temporary, dir_fd=self.work)
            raise

    def cover_directory(self, name: bytes, dir_fd: int) -> None:
        """Put a whiteout in place of a directory, in one step, and remove the directory with what it hid."""
        temporary = self.temporary()
        self.make_whiteout(temporary, self.work)
        try:
            rename(self.work, temporary, dir_fd, name, EXCHANGE)
        except BaseException:
            os.unlink(temporary, dir_fd=self.work)
            raise
        self._discard(temporary)

    def remove_directory(self, name: bytes, dir_fd: int) -> None:
        """Remove a directory that shows nothing; whiteouts in it go with it."""
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            temporary = self.temporary()
            os.rename(name, temporary, src_dir_fd=dir_fd, dst_dir_fd=self.work)
            self._discard(temporary)

    def _discard(self, temporary: bytes) -> None:
        """Remove a tree that has lost its name already: what cannot be removed now, the next mount removes."""
        with contextlib.suppress(OSError):
            remove_tree(temporary, dir_fd=self.work)

    def opaque_mark(self, name: bytes, dir_fd: int) -> bytes:
        """Return the opaque mark of a directory; see :func:`layerfs.union.mark.read_opaque`."""
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
        try:
            return read_opaque(fd, self.prefix, foreign=self.foreign_marks)
        finally:
            os.close(fd)

    def make_opaque(self, name: bytes, dir_fd: int) -> None:
        """Mark a directory so that nothing below it shows through."""
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
        try:
            os.setxattr(descriptor_path(fd), self.prefix + b"opaque", b"y")
        finally:
            os.close(fd)

    def clear_whiteouts(self, name: bytes, dir_fd: int) -> None:
        """Empty a directory that shows nothing, so that something can be renamed over it."""
        self.make_opaque(name, dir_fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            for text in os.listdir(fd):
                os.unlink(text, dir_fd=fd)
        finally:
            os.close(fd)

    def _may_name_later(self) -> bool:
        """Whether a file can be made without a name and get one, tried on one."""
        name = self.temporary()
        try:
            fd = os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.work)
            try:
                link_open_file(fd, self.work, name)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _NO_LATER_NAME:
                raise
            return False
        os.unlink(name, dir_fd=self.work)
        return True

    def _disinherit(self, work: bytes) -> None:
        """Take from the work directory what its own parent passed on: copies would get it as well."""
        for name in ("system.posix_acl_default", "system.posix_acl_access"):
            try:
                os.removexattr(work, name)
            except OSError as error:
                if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
                    raise
        os.chmod(work, 0o700)  # no set-group-ID bit

    def _may_give_away(self) -> bool:
        """Whether files can be given to another owner, tried on one."""
        name = self.temporary()
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.work))
        status = os.stat(name, dir_fd=self.work, follow_symlinks=False)
        self.owner = (status.st_uid, status.st_gid)
        try:
            other = another_owner(status.st_uid)
            os.chown(name, other, other, dir_fd=self.work, follow_symlinks=False)
        except OSError as error:
            if error.errno in {errno.EPERM, errno.EINVAL}:
                return False
            raise
        else:
            return True
        finally:
            os.unlink(name, dir_fd=self.work)


def _opened(stack: contextlib.ExitStack, fd: int) -> int:
    """Close a descriptor with the stack."""
    stack.callback(os.close, fd)
    return fd


def _open_alone(upper: str | bytes, work: str | bytes) -> tuple[int, int, bool]:
    """Open upper and work directory apart from what is mounted below or on top of them, as overlayfs does.

    It may be the union itself, which would wait for itself. Both through one copy of the mount: nothing can be renamed
    from one mount to another.

    Returns:
        An O_PATH descriptor of the one, a readable one of the other, and whether that was possible.
    """
    paths = [os.fsencode(os.path.realpath(path)) for path in (upper, work)]
    above = os.path.commonpath(paths)
    with contextlib.ExitStack() as plain, contextlib.ExitStack() as alone:
        own = _opened(plain, os.open(upper, _DIRECTORY & ~os.O_NOFOLLOW)), _opened(plain, os.open(work, _READABLE))
        try:
            base = clone_tree(os.fsdecode(above))
            try:
                root, lock = (
                    _opened(alone, os.open(os.path.relpath(path, above), flags, dir_fd=base))
                    for path, flags in zip(paths, (_DIRECTORY, _READABLE), strict=True)
                )
            finally:
                os.close(base)
        except OSError:  # no privilege for it, or a mount that may not be looked behind
            plain.pop_all()
            return *own, False
        if all(os.path.samestat(os.fstat(one), os.fstat(other)) for one, other in zip((root, lock), own, strict=True)):
            alone.pop_all()
            return root, lock, True
        # Something is mounted between the two and what they have in common.
        plain.pop_all()
        return *own, False


def _exists(path: bytes, dir_fd: int) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _open_up(name: bytes, dir_fd: int) -> None:
    """Give the owner of a directory all permission: overlayfs makes its own without any."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        os.chmod(descriptor_path(fd), 0o700)
    finally:
        os.close(fd)


def _is_append_only(directory: int) -> bool:
    """Whether nothing can be removed from a directory; where that cannot be found out it can."""
    try:
        fd = os.open(b".", _READABLE, dir_fd=directory)
        try:
            return is_append_only(fd)
        finally:
            os.close(fd)
    except OSError:  # a file system without flags; a directory that may not be read
        return False
