"""Open regular files: reading from a layer or the upper, writing to the upper."""

from __future__ import annotations

import os
import stat
from errno import EBADF, EIO

from layerfs.union.base import Caller, OpenFile, UnionPart
from layerfs.union.node import Node

__all__ = ["FilePart"]

_PRIVILEGE_BITS = stat.S_ISUID | stat.S_ISGID


class FilePart(UnionPart):
    """Open files, by handles that are numbers."""

    def open(self, ino: int, flags: int, caller: Caller) -> int:
        """Open a regular file; for writing it is copied up first.

        Args:
            ino: the file.
            flags: as of open(2); O_APPEND and O_DIRECT are the kernel's business.
            caller: whoever is not root loses a file's set-ID bits by writing to it.

        Returns:
            A handle for the other methods.

        Raises:
            OSError: EROFS, ENOSPC, EIO, ESTALE.

        Blocking: copies the whole file, unless O_TRUNC is given.
        """
        node = self._nodes[ino]
        self._regular(node)
        access = flags & os.O_ACCMODE
        truncate = bool(flags & os.O_TRUNC)
        writable = access != os.O_RDONLY
        if writable or truncate:
            self._copy_up(node, data=not truncate)
        if node.upper:
            fd = self._open_upper(node, access if not truncate or writable else os.O_RDWR)
            file = OpenFile(node, fd, 0, None, owned=True, writable=writable, strips=writable and caller.uid != 0)
            if truncate:
                os.ftruncate(fd, 0)
                self._strip(file, force=caller.uid != 0)
            return self._opened(file)
        found = self._lower.open(node.lower)
        file = OpenFile(node, found.fd, found.offset, found.size, owned=found.owned, writable=False, strips=False)
        handle = self._opened(file)
        self._open_lower.setdefault(ino, set()).add(handle)
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Return bytes of a file; fewer than asked for at its end only.

        Raises:
            OSError: EIO, also where a layer ends too early.
        """
        file = self._files[handle]
        if file.size is None:
            return os.pread(file.fd, size, offset)
        size = min(size, file.size - offset)
        if size <= 0:
            return b""
        data = os.pread(file.fd, size, file.offset + offset)
        if len(data) != size:
            raise OSError(EIO, f"lower file ends at byte {offset + len(data)} of {file.size}")
        return data

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write bytes and return how many.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO, EFBIG.
        """
        file = self._files[handle]
        if file.size is not None:
            raise OSError(EBADF, os.strerror(EBADF))
        written = os.pwrite(file.fd, data, offset)
        if file.strips:
            self._strip(file)
        return written

    def fsync(self, handle: int, *, data_only: bool) -> None:
        """Make a file durable. Raises EIO, ENOSPC."""
        file = self._files[handle]
        if file.size is None and self._sync:
            (os.fdatasync if data_only else os.fsync)(file.fd)

    def release(self, handle: int) -> None:
        """Close a file."""
        file = self._files.pop(handle, None)
        if file is None:
            return
        if file.owned and file.fd >= 0:
            os.close(file.fd)
        node = file.node
        if self._open_lower:
            others = self._open_lower.get(node.ino)
            if others is not None:
                others.discard(handle)
                if not others:
                    del self._open_lower[node.ino]
        node.opens -= 1
        self._nodes.drop(node)

    def _opened(self, file: OpenFile) -> int:
        """Give an open file a handle."""
        file.node.opens += 1
        self._serial += 1
        self._files[self._serial] = file
        return self._serial

    def _strip(self, file: OpenFile, *, force: bool = False) -> None:
        """Take the set-ID bits away, as the kernel does for writers without the capability to keep them."""
        if not (file.strips or force):
            return
        file.strips = False
        mode = self._attributes(file.node).mode
        self._strip_mode(file.node, mode)

    def _strip_mode(self, node: Node, mode: int) -> None:
        """Take the set-ID bits of a mode away; set-group-ID without group execution is another thing and stays."""
        taken = mode & stat.S_ISUID
        if mode & stat.S_ISGID and mode & stat.S_IXGRP:
            taken |= stat.S_ISGID
        if taken and self._upper is not None:
            self._upper.change(node, mode=mode & ~taken, uid=None, gid=None)
