"""The bytes of regular files, by inode number: read from a layer or the upper, written to the upper.

Nobody opens or closes anything here: descriptors are opened when bytes are first asked for and kept for a while, so a
server can let the kernel open files without asking. The first write copies a file up, not its opening.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from errno import EACCES, EINVAL, EIO, ENXIO, EOPNOTSUPP, EPERM, EROFS

from layerfs.linux.sparse import allocate
from layerfs.union.base import UnionPart
from layerfs.union.mark import descriptor_path, refuse_metacopy
from layerfs.union.node import Content, Node

__all__ = ["FilePart"]

_OPENING = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: What opening a file of the upper for writing answers where reading it may still be possible.
_NO_WRITING = frozenset({EACCES, EPERM, EROFS})
#: Bytes written at a time. The page cache takes one block of memory for what comes in one call; large blocks are what a
#: virtual machine has given back to its host, and to get them again takes longer than copying: 1.4 ms per MiB for 0.8.
_PIECE = 128 << 10


class FilePart(UnionPart):
    """Reading and writing."""

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """Return bytes of a file; fewer than asked for at its end only.

        Raises:
            OSError: EIO, also where a layer ends too early and for what is no regular file; ESTALE.
        """
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self.read_into(ino, offset, buffer)])

    def read_into(self, ino: int, offset: int, buffer: memoryview) -> int:
        """As :meth:`read`, into a buffer; return how many bytes are in it."""
        node = self._nodes.get(ino)
        # Of a file that nobody has changed or asked for by name the lower tree alone knows.
        content = self._lower.open(self._nodes.reference(ino)) if node is None else self._content(node)
        if content.size is None:
            return os.preadv(content.fd, [buffer], offset)
        size = min(len(buffer), content.size - offset)
        if size <= 0:
            return 0
        found = os.preadv(content.fd, [buffer[:size]], content.offset + offset)
        if found != size:
            raise OSError(EIO, f"lower file ends at byte {offset + found} of {content.size}")
        return size

    def write(self, ino: int, offset: int, data: bytes | memoryview, *, strip: bool = False) -> int:
        """Write bytes and return how many; the file is copied up first.

        Args:
            ino: the file.
            offset: where in it.
            data: the bytes.
            strip: whether the writer loses the set-ID bits of the file by this.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO, EFBIG, EROFS.
        """
        node = self._nodes[ino]
        content = self._written(node)
        if content.appends and offset != os.fstat(content.fd).st_size:
            raise PermissionError(EPERM, os.strerror(EPERM))
        if len(data) <= _PIECE:
            written = os.pwrite(content.fd, data, offset)
        else:
            written = _write_large(content.fd, memoryview(data), offset)
        if strip:
            self._strip_mode(node, self._attributes(node).mode)
        return written

    def keep_out_of_group(self, ino: int, groups: Callable[[], Collection[int]]) -> bool:
        """Take a set-group-ID bit away that goes without group execution, before one outside the group changes a file.

        That is: writes, truncates it, or gives it to another group.

        The kernel leaves this to the file system.

        Args:
            ino: the file.
            groups: asked for those of the writer, who is not root, if they matter.

        Returns:
            Whether the file lost the bit.
        """
        node = self._nodes[ino]
        if node.is_directory:
            return False
        found = self._attributes(node)
        if found.mode & stat.S_ISGID and not found.mode & stat.S_IXGRP and found.gid not in groups():
            upper = self._writable()
            self._copy_up(node)
            upper.change(node, mode=found.mode & ~stat.S_ISGID, uid=None, gid=None)
            return True
        return False

    def fsync(self, ino: int, *, data_only: bool) -> None:
        """Make a file durable, and all copies before it. Raises EIO, ENOSPC."""
        node = self._nodes[ino]
        if node.upper and self._late is not None:
            content = self._content(node)
            self._late.finish()  # a commit of the journal would take their names along
            self._late.raise_failure(ino)
            (os.fdatasync if data_only else os.fsync)(content.fd)

    def allocate(self, ino: int, mode: int, offset: int, size: int) -> None:
        """Reserve space, or give it back, as fallocate(2) does with a mode; the file is copied up first.

        Raises:
            OSError: EOPNOTSUPP for modes that the file system below or this union does not know, ENOSPC, EROFS.
        """
        allocate(self._written(self._nodes[ino]).fd, mode, offset, size)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """Return where the next data or hole begins, for SEEK_DATA and SEEK_HOLE; a file in a layer tar is all data.

        Raises:
            OSError: ENXIO behind the end, EINVAL for another whence.
        """
        content = self._content(self._nodes.look(ino))
        if content.size is None or content.owned:
            return os.lseek(content.fd, offset, whence)
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise OSError(EINVAL, os.strerror(EINVAL))
        if not 0 <= offset < content.size:
            raise OSError(ENXIO, os.strerror(ENXIO))
        return offset if whence == os.SEEK_DATA else content.size

    def copy_range(self, ino: int, offset: int, target: int, target_offset: int, size: int) -> int:
        """Copy bytes from file to file inside the kernel, as a reflink where it can; return how many.

        Raises:
            OSError: as :meth:`read` and :meth:`write`.
        """
        source, node = self._content(self._nodes[ino]), self._nodes[target]
        if source.size is not None:
            size = min(size, source.size - offset)
        if size <= 0:
            return 0
        destination = self._written(node)
        if destination.appends:
            raise OSError(EOPNOTSUPP, os.strerror(EOPNOTSUPP))  # the kernel writes by itself then
        source = self._content(self._nodes[ino])  # it may be the same file, copied up just now
        return os.copy_file_range(source.fd, destination.fd, size, source.offset + offset, target_offset)

    def _content(self, node: Node) -> Content:
        """Return where a file's bytes are read."""
        return node.content or self._opened(node)

    def _written(self, node: Node) -> Content:
        """Return where a file's bytes are written; it is copied up first."""
        content = node.content
        if content is not None and content.writable:
            return content
        self._copy_up(node)
        content = node.content or self._opened(node)
        if not content.writable:
            # Whoever may not write it is told why; else it was opened before that became possible.
            os.close(self._open_upper(node, os.O_RDWR))
            node.close_content()
            content = self._opened(node)
        return content

    def _opened(self, node: Node) -> Content:
        """Open a file."""
        self._regular(node)
        if node.upper:
            try:
                content = Content(self._open_upper(node, os.O_RDWR), 0, None, owned=True, writable=True)
            except OSError as error:
                if error.errno not in _NO_WRITING:
                    raise
                content = self._opened_partly(node)
            try:
                refuse_metacopy(content.fd, self._prefix)
            except BaseException:
                os.close(content.fd)
                raise
        else:
            found = self._lower.open(node.lower)
            content = Content(found.fd, found.offset, found.size, owned=found.owned, writable=False)
        self._keep(node, content)
        return content

    def _opened_partly(self, node: Node) -> Content:
        """Open a file of the upper for appending, where it takes no more than that, or for reading."""
        try:
            fd = self._open_upper(node, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            if error.errno not in _NO_WRITING:
                raise
        else:
            return Content(fd, 0, None, owned=True, writable=True, appends=True)
        return Content(self._open_upper(node, os.O_RDONLY), 0, None, owned=True, writable=False)

    def _open_upper(self, node: Node, flags: int) -> int:
        """Open a regular file of the upper."""
        upper = self._writable()
        if node.fd >= 0:
            return upper.open(descriptor_path(node.fd), flags | (_OPENING & ~os.O_NOFOLLOW))
        fd, name = upper.place(node)
        return upper.open(name, flags | _OPENING, fd)

    def _regular(self, node: Node) -> None:
        """Refuse what has no bytes."""
        if node.kind != stat.S_IFREG:
            raise OSError(EIO, "no regular file")

    def _strip_mode(self, node: Node, mode: int) -> None:
        """Take the set-ID bits of a mode away; set-group-ID without group execution is another thing and stays."""
        taken = mode & stat.S_ISUID
        if mode & stat.S_ISGID and mode & stat.S_IXGRP:
            taken |= stat.S_ISGID
        if taken and self._upper is not None:
            self._upper.change(node, mode=mode & ~taken, uid=None, gid=None)


def _write_large(fd: int, data: memoryview, offset: int) -> int:
    """Write bytes piece by piece; fewer than all if the file system has no more room, as one call would."""
    written = 0
    while written < len(data):
        try:
            written += os.pwrite(fd, data[written : written + _PIECE], offset + written)
        except OSError:
            if not written:
                raise
            break
    return written
