"""From FUSE requests to calls of the union, and back, by way of pyfuse3.

The union knows no open files, and pyfuse3 tells a handle alone for what is done with one: a handle of a file is its
inode number and, as the lowest bit, whether whoever opened it loses set-ID bits by writing; of a directory its number.

No exception but FUSEError leaves a handler, because any other would end the loop and with it the mount: an OSError
becomes its errno, everything else is logged and becomes EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, readdir_reply

from layerfs.linux.process import groups_of, may_administer
from layerfs.union.attribute import Attributes
from layerfs.union.change import Changes
from layerfs.union.listing import NOT_LOOKED_UP
from layerfs.union.union import Union

__all__ = ["UnionOperations"]

_log = logging.getLogger(__name__)


def _answered(function: Callable[..., Any]) -> Any:
    """Make a handler of a synchronous method: what it raises becomes the errno of the answer."""

    @functools.wraps(function)
    async def handler(self: UnionOperations, *arguments: Any) -> Any:
        try:
            return function(self, *arguments)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._union.close_spare()
            if error.errno is None or error.errno == errno.EIO:
                _log.error("%s%s: %s", function.__name__, arguments[:1], error)
            raise FUSEError(error.errno or errno.EIO) from None
        except FUSEError:
            raise
        except Exception as error:
            _log.exception("%s%s", function.__name__, arguments[:1])
            raise FUSEError(errno.EIO) from error

    return handler


class UnionOperations(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, union: Union, *, timeout: float, acl: bool) -> None:
        """Serve a union.

        Args:
            union: what is served.
            timeout: seconds for which the kernel may keep what it is told.
            acl: whether the kernel enforces POSIX ACLs.
        """
        super().__init__()
        self.enable_acl = acl
        self._union = union
        self._shared = EntryAttributes()
        self._shared.entry_timeout = self._shared.attr_timeout = timeout
        self._shared.st_nlink = 0
        self._owners: tuple[int, ...] = (0, 0, 0, 0)
        self._times: tuple[int, ...] = (0, 0, 0)
        self._missing = EntryAttributes()
        self._missing.st_ino = 0
        self._missing.entry_timeout = timeout

    def init(self) -> None:
        """Accept the connection."""

    @_answered
    def lookup(self, parent: int, name: bytes, _context: RequestContext) -> EntryAttributes:
        """Look a name up; one that is missing is an answer that the kernel keeps."""
        found = self._union.lookup(parent, name)
        return self._missing if found is None else self._entry(found)

    async def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Take back lookups; there is no answer, so no error either."""
        try:
            self._union.forget(forgotten)
        except Exception:  # noqa: BLE001 - any other exception would end the mount
            _log.exception("forget")

    @_answered
    def getattr(self, ino: int, _context: RequestContext) -> EntryAttributes:
        """Stat an inode."""
        return self._entry(self._union.getattr(ino))

    @_answered
    def setattr(
        self, ino: int, new: EntryAttributes, fields: SetattrFields, _handle: int | None, context: RequestContext
    ) -> EntryAttributes:
        """Change attributes."""
        mode = stat.S_IMODE(new.st_mode)
        if context.uid and (fields.update_uid or fields.update_gid):
            pid, gid = context.pid, context.gid
            if self._union.keep_out_of_group(ino, lambda: groups_of(pid) | {gid}):
                mode &= ~stat.S_ISGID
        changes = Changes(
            mode=mode if fields.update_mode else None,
            uid=new.st_uid if fields.update_uid else None,
            gid=new.st_gid if fields.update_gid else None,
            size=new.st_size if fields.update_size else None,
            strip=fields.update_size and context.uid != 0,
            atime_ns=new.st_atime_ns if fields.update_atime else None,
            mtime_ns=new.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(self._union.setattr(ino, changes))

    @_answered
    def readlink(self, ino: int, _context: RequestContext) -> bytes:
        """Read a symbolic link."""
        return self._union.readlink(ino)

    @_answered
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, context: RequestContext) -> EntryAttributes:
        """Make a device, fifo, socket or empty file."""
        return self._entry(self._union.mknod(parent, name, mode, rdev, context))

    @_answered
    def mkdir(self, parent: int, name: bytes, mode: int, context: RequestContext) -> EntryAttributes:
        """Make a directory."""
        return self._entry(self._union.mkdir(parent, name, mode, context))

    @_answered
    def unlink(self, parent: int, name: bytes, _context: RequestContext) -> None:
        """Remove a name."""
        self._union.unlink(parent, name)

    @_answered
    def rmdir(self, parent: int, name: bytes, _context: RequestContext) -> None:
        """Remove a directory."""
        self._union.rmdir(parent, name)

    @_answered
    def symlink(self, parent: int, name: bytes, target: bytes, context: RequestContext) -> EntryAttributes:
        """Make a symbolic link."""
        return self._entry(self._union.symlink(parent, name, target, context))

    @_answered
    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, _context: RequestContext
    ) -> None:
        """Move a name."""
        self._union.rename(old_parent, old_name, new_parent, new_name, flags)

    @_answered
    def link(self, ino: int, parent: int, name: bytes, _context: RequestContext) -> EntryAttributes:
        """Make a hard link."""
        return self._entry(self._union.link(ino, parent, name))

    @_answered
    def open(self, ino: int, flags: int, context: RequestContext) -> FileInfo:
        """Open a file; the kernel keeps its pages, since all changes come through it."""
        if flags & os.O_TRUNC:
            self._union.setattr(ino, Changes(size=0, strip=context.uid != 0))
        return FileInfo(ino << 1 | bool(context.uid))

    @_answered
    def create(
        self, parent: int, name: bytes, mode: int, _flags: int, context: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file and open it."""
        found = self._union.create(parent, name, mode, context)
        return FileInfo(found.ino << 1 | bool(context.uid)), self._entry(found)

    @_answered
    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read from a file."""
        return self._union.read(handle >> 1, offset, size)

    @_answered
    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write to a file."""
        return self._union.write(handle >> 1, offset, data, strip=bool(handle & 1))

    @_answered
    def flush(self, _handle: int) -> NoReturn:
        """Answer once and for all that closing a file needs no request: every write was passed on at once."""
        raise FUSEError(errno.ENOSYS)

    @_answered
    def release(self, _handle: int) -> None:
        """Close a file, of which the union knows nothing."""

    @_answered
    def fsync(self, handle: int, data_only: bool) -> None:  # noqa: FBT001 - of pyfuse3
        """Make a file durable."""
        self._union.fsync(handle >> 1, data_only=data_only)

    @_answered
    def opendir(self, ino: int, _context: RequestContext) -> int:
        """Open a directory."""
        return ino

    @_answered
    def readdir(self, handle: int, place: int, token: Any) -> None:
        """List a directory with attributes."""
        for name, found, after in self._union.readdir(handle, place):
            # pyfuse3 knows no entry that is not looked up; such a one is left out.
            if found.nlink != NOT_LOOKED_UP and not readdir_reply(token, name, self._entry(found), after):
                break

    @_answered
    def releasedir(self, _handle: int) -> None:
        """Close a directory."""

    @_answered
    def fsyncdir(self, handle: int, _data_only: bool) -> None:  # noqa: FBT001 - of pyfuse3
        """Make the names of a directory durable."""
        self._union.fsyncdir(handle)

    @_answered
    def statfs(self, _context: RequestContext) -> pyfuse3.StatvfsData:
        """Tell the space."""
        found, answer = self._union.statfs(), pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, name, getattr(found, name))
        answer.f_namemax = found.f_namemax
        return answer

    @_answered
    def getxattr(self, ino: int, name: bytes, _context: RequestContext) -> bytes:
        """Read an xattr."""
        return self._union.getxattr(ino, name)

    @_answered
    def listxattr(self, ino: int, context: RequestContext) -> list[bytes]:
        """List xattrs."""
        pid: int = context.pid
        return self._union.listxattr(ino, lambda: may_administer(pid))

    @_answered
    def setxattr(self, ino: int, name: bytes, value: bytes, _context: RequestContext) -> None:
        """Set an xattr."""
        self._union.setxattr(ino, name, value)

    @_answered
    def removexattr(self, ino: int, name: bytes, _context: RequestContext) -> None:
        """Remove an xattr."""
        self._union.removexattr(ino, name)

    def _entry(self, found: Attributes) -> EntryAttributes:
        """Return attributes in the form of pyfuse3: one object for all, which is copied before the next request."""
        entry = self._shared
        entry.st_ino, entry.st_mode, _, _, _, _, entry.st_size, entry.st_blocks, _, _, _ = found
        # Files of one package have one owner and one time: what is the same as last time is not set again.
        owners, times = found[2:6], found[8:]
        if owners != self._owners:
            self._owners = owners
            entry.st_nlink, entry.st_uid, entry.st_gid, entry.st_rdev = owners
        if times != self._times:
            self._times = times
            entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = times
        return entry
