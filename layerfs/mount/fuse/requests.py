"""Requests of the kernel's FUSE become calls of the union, and what these return becomes replies.

Source: fs/fuse of Linux, above all dev.c, dir.c, file.c and readdir.c.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import struct
import time
from collections.abc import Callable

from layerfs.errors import FormatError
from layerfs.linux.inode_flags import EXTENDED, FLAGS
from layerfs.linux.process import groups_of, may_administer
from layerfs.mount.fuse.protocol import (
    ATTRIBUTES,
    ENTRY,
    IN_HEADER,
    INIT_IN,
    INIT_OUT,
    MINOR,
    NOTIFY_INODE,
    OUT_HEADER,
    STATFS,
    Init,
    Notify,
    Operation,
    SetAttr,
    directory_entry,
)
from layerfs.union.attribute import Attributes
from layerfs.union.change import Changes
from layerfs.union.union import Union

__all__ = ["Reply", "Requests"]

_log = logging.getLogger(__name__)

#: The most that one request or reply carries.
_LARGEST = 1 << 20
_PAGES = _LARGEST // os.sysconf("SC_PAGESIZE")
_CLOCK_REALTIME_COARSE = 5
#: A WRITE request: header, what describes it, and its data.
_WRITE_DATA = IN_HEADER.size + 40
#: Requests that the kernel may send ahead of their need: reading ahead.
_BACKGROUND = 64
_CONGESTED = 48
_SECOND = 1_000_000_000
_BLOCK = 4096
_HEADER = IN_HEADER.size
#: HANDLE_KILLPRIV_V2 is not among them, though it would save a request per write: with it the kernel asks in the same
#: words for a chown that changes nothing, which only the owner may do, and for a write of anybody else.
_WANTED = (
    Init.ASYNC_READ | Init.EXPORT_SUPPORT | Init.BIG_WRITES | Init.DONT_MASK | Init.DO_READDIRPLUS
    | Init.PARALLEL_DIROPS | Init.MAX_PAGES | Init.CACHE_SYMLINKS | Init.EXPLICIT_INVAL_DATA
    | Init.SETXATTR_EXT
)  # fmt: skip
#: SETATTR: what takes a set-group-ID bit away, and what needs the time.
_STRIPPING = SetAttr.SIZE | SetAttr.UID | SetAttr.GID
_NOW = SetAttr.ATIME_NOW | SetAttr.MTIME_NOW
#: SETXATTR: the file loses its set-group-ID bit.
_ACL_KILL_SGID = 1 << 0
_FDATASYNC = 1 << 0
_NO_DATA = -errno.ENODATA
_SHORT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

#: What TMPFILE adds to the entry: no handle, and pages that may be kept.
_OPENED = struct.pack("=QII", 0, 1 << 1, 0)

_word = struct.Struct("=I")
_two_words = struct.Struct("=II")
_four_words = struct.Struct("=IIII")
_number = struct.Struct("=Q")
_read_in = struct.Struct("=8xQI")
_rename2_in = struct.Struct("=QI4x")
_setattr_in = struct.Struct("=I4x8xQ8xqq8xII4xI4xII")
_fallocate_in = struct.Struct("=8xQQI")
_lseek_in = struct.Struct("=8xqI")
_copy_in = struct.Struct("=8xQQ8xQQ")
#: Command, argument, bytes that follow.
_ioctl_in = struct.Struct("=12xIQI4x")
_ioctl_out = struct.Struct("=iIII")

_READ_FLAGS = {form.get: form for form in (FLAGS, EXTENDED)}
_WRITE_FLAGS = {form.set: form for form in (FLAGS, EXTENDED)}

#: What a handler returns: the reply, or None if there is none.
Reply = bytes | memoryview | None


class _Caller:
    """Whoever sent the request that is being served."""

    __slots__ = ("gid", "uid", "umask")

    def __init__(self) -> None:
        self.uid = self.gid = self.umask = 0


class Requests:
    """Answers requests, one after the other.

    Attributes:
        buffer: takes a request; large enough for any.
        handlers: by the number of their operation. Each takes the request's number, its inode, and its length in the
            buffer, and returns the reply: bytes, or a view that holds until the next one; None if there is none. What
            it cannot do is an OSError.
    """

    def __init__(self, device: int, union: Union, *, timeout: float, acl: bool) -> None:
        """Prepare; nothing is read yet.

        Args:
            device: descriptor of /dev/fuse that was given to the mount; the caller closes it.
            union: what is served.
            timeout: seconds for which the kernel may keep what it is told.
            acl: whether the kernel enforces POSIX ACLs.
        """
        self._device = device
        self._union = union
        self._acl = acl
        self._seconds, self._nanoseconds = int(timeout), int(timeout % 1 * _SECOND)
        self._caller = _Caller()
        self._setxattr_in = _two_words
        # No request is larger than a WRITE, and the kernel refuses a reader with less room.
        self.buffer = bytearray(_WRITE_DATA + _LARGEST)
        self._data = memoryview(self.buffer)
        self._answer = bytearray(OUT_HEADER.size + _LARGEST)
        self._reply = memoryview(self._answer)
        self._missing = ENTRY.pack(
            ENTRY.size, 0, 0, 0, 0, self._seconds, 0, self._nanoseconds, *(0,) * 17
        )[OUT_HEADER.size :]  # fmt: skip
        handlers: dict[int, Callable[[int, int, int], Reply]] = {
            Operation.LOOKUP: self._lookup,
            Operation.FORGET: self._forget,
            Operation.BATCH_FORGET: self._batch_forget,
            Operation.GETATTR: self._getattr,
            Operation.SETATTR: self._setattr,
            Operation.READLINK: self._readlink,
            Operation.SYMLINK: self._symlink,
            Operation.MKNOD: self._mknod,
            Operation.MKDIR: self._mkdir,
            Operation.UNLINK: self._unlink,
            Operation.RMDIR: self._rmdir,
            Operation.RENAME: self._rename,
            Operation.RENAME2: self._rename2,
            Operation.LINK: self._link,
            Operation.READ: self._read,
            Operation.WRITE: self._write,
            Operation.STATFS: self._statfs,
            Operation.FSYNC: self._fsync,
            Operation.FSYNCDIR: self._fsyncdir,
            Operation.SETXATTR: self._setxattr,
            Operation.GETXATTR: self._getxattr,
            Operation.LISTXATTR: self._listxattr,
            Operation.REMOVEXATTR: self._removexattr,
            Operation.INIT: self._init,
            Operation.READDIRPLUS: self._readdir,
            Operation.FALLOCATE: self._fallocate,
            Operation.LSEEK: self._lseek,
            Operation.COPY_FILE_RANGE: self._copy_file_range,
            Operation.INTERRUPT: self._ignore,
            Operation.IOCTL: self._ioctl,
            Operation.TMPFILE: self._tmpfile,
            Operation.RELEASE: self._release,
        }
        # By plain numbers, which are found without comparing.
        self.handlers = {int(operation): handler for operation, handler in handlers.items()}

    def failed(self, operation: int, ino: int, unique: int, error: Exception) -> bytes:
        """Return the reply to a request that went wrong."""
        number = error.errno if isinstance(error, OSError) else None
        if number in _SHORT_OF_DESCRIPTORS:
            self._union.close_spare()
        if not isinstance(error, OSError):
            _log.error("%s of inode %d", Operation(operation).name, ino, exc_info=error)
        elif number is None or number == errno.EIO:
            _log.error("%s of inode %d: %s", Operation(operation).name, ino, error)
        return OUT_HEADER.pack(OUT_HEADER.size, -(number or errno.EIO), unique)

    def _init(self, unique: int, _ino: int, _length: int) -> bytes:
        major, minor, read_ahead, offered = INIT_IN.unpack_from(self.buffer, _HEADER)
        if major != 7 or minor < 31:
            raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}")
        flags = offered & (_WANTED | (Init.POSIX_ACL if self._acl else 0))
        if flags & Init.SETXATTR_EXT:
            self._setxattr_in = _four_words
        body = INIT_OUT.pack(
            7, MINOR, max(read_ahead, _LARGEST), flags, _BACKGROUND, _CONGESTED, _LARGEST, 1, _PAGES, 0, 0
        )  # fmt: skip
        return _answer(unique, body)

    def _ignore(self, _unique: int, _ino: int, _length: int) -> None:
        """Each request is answered before the next one is read, so there is nothing to interrupt."""

    def _lookup(self, unique: int, ino: int, length: int) -> bytes:
        found = self._union.lookup(ino, bytes(self._data[_HEADER : length - 1]))
        if found is None:
            return OUT_HEADER.pack(ENTRY.size, 0, unique) + self._missing
        return self._entry(unique, found)

    def _forget(self, _unique: int, ino: int, _length: int) -> None:
        self._union.forget([(ino, *_number.unpack_from(self.buffer, _HEADER))])

    def _batch_forget(self, _unique: int, _ino: int, _length: int) -> None:
        (count,) = _word.unpack_from(self.buffer, _HEADER)
        start = _HEADER + _two_words.size
        self._union.forget(struct.iter_unpack("=QQ", self._data[start : start + 16 * count]))

    def _getattr(self, unique: int, ino: int, _length: int) -> bytes:
        return self._attributes(unique, self._union.getattr(ino))

    def _setattr(self, unique: int, ino: int, _length: int) -> bytes:
        values = _setattr_in.unpack_from(self.buffer, _HEADER)
        valid, size, atime, mtime, atime_ns, mtime_ns, mode, uid, gid = values
        if valid & _STRIPPING and self._keep_out_of_group(ino):
            mode &= ~stat.S_ISGID  # the kernel only knows of the set-user-ID bit
        now = 0
        if valid & _NOW:
            # The clock by which file systems stamp new files, so that none seems older than what was touched before it.
            now = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        changes = Changes(
            mode=mode & 0o7777 if valid & SetAttr.MODE else None,
            uid=uid if valid & SetAttr.UID else None,
            gid=gid if valid & SetAttr.GID else None,
            size=size if valid & SetAttr.SIZE else None,
            atime_ns=_time(valid, SetAttr.ATIME, SetAttr.ATIME_NOW, atime, atime_ns, now),
            mtime_ns=_time(valid, SetAttr.MTIME, SetAttr.MTIME_NOW, mtime, mtime_ns, now),
        )
        return self._attributes(unique, self._union.setattr(ino, changes))

    def _readlink(self, unique: int, ino: int, _length: int) -> bytes:
        return _answer(unique, self._union.readlink(ino))

    def _symlink(self, unique: int, ino: int, length: int) -> bytes:
        name, target = self._names(_HEADER, length)
        return self._entry(unique, self._union.symlink(ino, name, target, self._who(0)))

    def _mknod(self, unique: int, ino: int, length: int) -> bytes:
        mode, device, umask, _ = _four_words.unpack_from(self.buffer, _HEADER)
        (name,) = self._names(_HEADER + _four_words.size, length)
        return self._entry(unique, self._union.mknod(ino, name, mode, device, self._who(umask)))

    def _tmpfile(self, unique: int, ino: int, _length: int) -> bytes:
        _, mode, umask, _ = _four_words.unpack_from(self.buffer, _HEADER)
        found = self._entry(unique, self._union.tmpfile(ino, mode & 0o7777, self._who(umask)))
        return _answer(unique, found[OUT_HEADER.size :] + _OPENED)

    def _release(self, unique: int, _ino: int, _length: int) -> bytes:
        """Files that were opened by a request are closed by one."""
        return _answer(unique)

    def _mkdir(self, unique: int, ino: int, length: int) -> bytes:
        mode, umask = _two_words.unpack_from(self.buffer, _HEADER)
        (name,) = self._names(_HEADER + _two_words.size, length)
        return self._entry(unique, self._union.mkdir(ino, name, mode, self._who(umask)))

    def _unlink(self, unique: int, ino: int, length: int) -> bytes:
        self._union.unlink(ino, *self._names(_HEADER, length))
        return _answer(unique)

    def _rmdir(self, unique: int, ino: int, length: int) -> bytes:
        self._union.rmdir(ino, *self._names(_HEADER, length))
        return _answer(unique)

    def _rename(self, unique: int, ino: int, length: int) -> bytes:
        (target,) = _number.unpack_from(self.buffer, _HEADER)
        old, new = self._names(_HEADER + _number.size, length)
        self._union.rename(ino, old, target, new, 0)
        return _answer(unique)

    def _rename2(self, unique: int, ino: int, length: int) -> bytes:
        target, flags = _rename2_in.unpack_from(self.buffer, _HEADER)
        old, new = self._names(_HEADER + _rename2_in.size, length)
        self._union.rename(ino, old, target, new, flags)
        return _answer(unique)

    def _link(self, unique: int, ino: int, length: int) -> bytes:
        (linked,) = _number.unpack_from(self.buffer, _HEADER)
        return self._entry(unique, self._union.link(linked, ino, *self._names(_HEADER + _number.size, length)))

    def _read(self, unique: int, ino: int, _length: int) -> memoryview:
        offset, size = _read_in.unpack_from(self.buffer, _HEADER)
        start = OUT_HEADER.size
        end = start + self._union.read_into(ino, offset, self._reply[start : start + size])
        OUT_HEADER.pack_into(self._answer, 0, end, 0, unique)
        return self._reply[:end]

    def _write(self, unique: int, ino: int, _length: int) -> bytes:
        offset, size = _read_in.unpack_from(self.buffer, _HEADER)
        self._keep_out_of_group(ino)
        written = self._union.write(ino, offset, self._data[_WRITE_DATA : _WRITE_DATA + size])
        return _answer(unique, _two_words.pack(written, 0))

    def _fallocate(self, unique: int, ino: int, _length: int) -> bytes:
        offset, size, mode = _fallocate_in.unpack_from(self.buffer, _HEADER)
        self._keep_out_of_group(ino)
        self._union.allocate(ino, mode, offset, size)
        return _answer(unique)

    def _lseek(self, unique: int, ino: int, _length: int) -> bytes:
        return _answer(unique, _number.pack(self._union.seek(ino, *_lseek_in.unpack_from(self.buffer, _HEADER))))

    def _copy_file_range(self, unique: int, ino: int, _length: int) -> bytes:
        offset, target, target_offset, size = _copy_in.unpack_from(self.buffer, _HEADER)
        self._keep_out_of_group(target)
        copied = self._union.copy_range(ino, offset, target, target_offset, min(size, 1 << 30))
        return _answer(unique, _two_words.pack(copied, 0))

    def _ioctl(self, unique: int, ino: int, _length: int) -> bytes:
        """Read and set inode flags, for the kernel itself.

        It has checked then who asks (fs/file_attr.c). A program's own ioctl has its argument with it; no such one is
        served, above all not by kernels before 5.13, which pass these on unchecked.

        Raises:
            OSError: ENOTTY.
        """
        command, argument, size = _ioctl_in.unpack_from(self.buffer, _HEADER)
        start = _HEADER + _ioctl_in.size
        found = b""
        if argument:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if (form := _READ_FLAGS.get(command)) is not None:
            found = self._union.flags(ino, form)
        elif (form := _WRITE_FLAGS.get(command)) is not None and size == form.size:
            self._union.set_flags(ino, form, bytes(self._data[start : start + size]))
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return _answer(unique, _ioctl_out.pack(0, 0, 0, 0) + found)

    def _fsync(self, unique: int, ino: int, _length: int) -> bytes:
        (flags,) = _word.unpack_from(self.buffer, _HEADER + 8)
        self._union.fsync(ino, data_only=bool(flags & _FDATASYNC))
        return _answer(unique)

    def _fsyncdir(self, unique: int, ino: int, _length: int) -> bytes:
        self._union.fsyncdir(ino)
        return _answer(unique)

    def _statfs(self, unique: int, _ino: int, _length: int) -> bytes:
        found = self._union.statfs()
        return _answer(unique, STATFS.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, found.f_namemax,
            found.f_frsize,
        ))  # fmt: skip

    def _setxattr(self, unique: int, ino: int, length: int) -> bytes:
        size, flags, *more = self._setxattr_in.unpack_from(self.buffer, _HEADER)
        end = length - size
        (name,) = self._names(_HEADER + self._setxattr_in.size, end)
        strip = bool(more and more[0] & _ACL_KILL_SGID)
        self._union.setxattr(ino, name, bytes(self._data[end:length]), flags, strip_group=strip)
        return _answer(unique)

    def _getxattr(self, unique: int, ino: int, length: int) -> bytes:
        (name,) = self._names(_HEADER + _two_words.size, length)
        value = self._union.find_xattr(ino, name)
        return OUT_HEADER.pack(OUT_HEADER.size, _NO_DATA, unique) if value is None else self._sized(unique, value)

    def _listxattr(self, unique: int, ino: int, _length: int) -> bytes:
        _, _, _, _, _, _, pid, _, _ = IN_HEADER.unpack_from(self.buffer)
        names = self._union.listxattr(ino, lambda: may_administer(pid))
        return self._sized(unique, b"".join(name + b"\0" for name in names))

    def _removexattr(self, unique: int, ino: int, length: int) -> bytes:
        self._union.removexattr(ino, *self._names(_HEADER, length))
        return _answer(unique)

    def _readdir(self, unique: int, ino: int, _length: int) -> memoryview:
        place, size = _read_in.unpack_from(self.buffer, _HEADER)
        buffer, header = self._answer, directory_entry(0).size
        seconds, nanoseconds = self._seconds, self._nanoseconds
        position = OUT_HEADER.size
        end = position + size
        try:
            for name, found, after in self._union.readdir(ino, place):
                length = len(name)
                following = position + (header + length + 7 & ~7)
                if following > end:
                    break
                child, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns = found
                atime = ctime = mtime = mtime_ns // _SECOND
                atime_rest = ctime_rest = mtime_rest = mtime_ns % _SECOND
                if atime_ns != mtime_ns or ctime_ns != mtime_ns:  # never in an image
                    atime, atime_rest = divmod(atime_ns, _SECOND)
                    ctime, ctime_rest = divmod(ctime_ns, _SECOND)
                node = child
                if after < 3 or nlink < 0:  # NOT_LOOKED_UP
                    node, nlink = 0, 0
                directory_entry(length).pack_into(
                    buffer, position,
                    node, 0, seconds, seconds, nanoseconds, nanoseconds,
                    child, size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
                    mode, nlink, uid, gid, rdev, _BLOCK, 0,
                    child, after, length, mode >> 12, name,
                )  # fmt: skip
                position = following
        except (OSError, FormatError):
            if position == OUT_HEADER.size:
                raise
            # What is there counts as looked up; whoever goes on behind it is told the error.
        OUT_HEADER.pack_into(buffer, 0, position, 0, unique)
        return self._reply[:position]

    def _keep_out_of_group(self, ino: int) -> bool:
        """Before a write: see :meth:`layerfs.union.file.FilePart.keep_out_of_group`."""
        _, _, _, _, uid, gid, pid, _, _ = IN_HEADER.unpack_from(self.buffer)
        if not uid or not self._union.keep_out_of_group(ino, lambda: groups_of(pid) | {gid}):
            return False
        # After a write the kernel asks for size and times anew, but goes on showing the mode that it knows.
        with contextlib.suppress(FileNotFoundError):
            os.write(self._device, NOTIFY_INODE.pack(NOTIFY_INODE.size, Notify.INVAL_INODE, 0, ino, -1, 0))
        return True

    def _names(self, start: int, end: int) -> list[bytes]:
        """Return the names at the end of a request, each with a NUL behind it."""
        return bytes(self._data[start : end - 1]).split(b"\0")

    def _who(self, umask: int) -> _Caller:
        """Return who sent the request."""
        caller = self._caller
        _, _, _, _, caller.uid, caller.gid, _, _, _ = IN_HEADER.unpack_from(self.buffer)
        caller.umask = umask
        return caller

    def _entry(self, unique: int, found: Attributes) -> bytes:
        """Return the reply that tells the kernel of an inode."""
        ino, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns = found
        seconds, nanoseconds = self._seconds, self._nanoseconds
        atime = ctime = mtime = mtime_ns // _SECOND
        atime_rest = ctime_rest = mtime_rest = mtime_ns % _SECOND
        if atime_ns != mtime_ns or ctime_ns != mtime_ns:  # never in an image
            atime, atime_rest = divmod(atime_ns, _SECOND)
            ctime, ctime_rest = divmod(ctime_ns, _SECOND)
        return ENTRY.pack(
            ENTRY.size, 0, unique, ino, 0, seconds, seconds, nanoseconds, nanoseconds,
            ino, size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
            mode, nlink, uid, gid, rdev, _BLOCK, 0,
        )  # fmt: skip

    def _attributes(self, unique: int, found: Attributes) -> bytes:
        """Return the reply with attributes."""
        ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime = found
        return ATTRIBUTES.pack(
            ATTRIBUTES.size, 0, unique, self._seconds, self._nanoseconds,
            ino, size, blocks, atime // _SECOND, mtime // _SECOND, ctime // _SECOND,
            atime % _SECOND, mtime % _SECOND, ctime % _SECOND, mode, nlink, uid, gid, rdev, _BLOCK, 0,
        )  # fmt: skip

    def _sized(self, unique: int, value: bytes) -> bytes:
        """Return the reply with an xattr, or its size for a caller that brought no room.

        Raises:
            OSError: ERANGE.
        """
        (room,) = _word.unpack_from(self.buffer, _HEADER)
        if not room:
            return _answer(unique, _two_words.pack(len(value), 0))
        if len(value) > room:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return _answer(unique, value)


def _answer(unique: int, body: bytes = b"") -> bytes:
    """Return a reply that is no error."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def _time(valid: int, given: int, current: int, seconds: int, nanoseconds: int, now: int) -> int | None:
    """Return the time that a request sets, in nanoseconds; None leaves it."""
    if valid & current:
        return now
    return seconds * _SECOND + nanoseconds if valid & given else None
