"""Reads the EROFS images that layerfs writes, through a buffer: the kernel mounts the same bytes.

The reader trusts nothing: an image may come from a damaged disk. Whatever does not fit raises :class:`FormatError`, and
no read leaves the buffer. Images of other writers are refused when they use features outside
:mod:`layerfs.formats.erofs.layout`.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from errno import EINVAL, ELOOP, ENOENT, ENOTDIR
from os import strerror
from typing import NamedTuple

from layerfs.errors import FormatError, UnsupportedFormat
from layerfs.formats.erofs.directory import DIRECTORY_TYPE, DOTS, Directory, decode_block
from layerfs.formats.erofs.layout import (
    BLOCK,
    BLOCK_BITS,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    COMPAT_SB_CHECKSUM,
    DEVICE_SLOT,
    FILE_TYPES,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    INODE,
    LAYOUT_CHUNKED,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    MAGIC,
    SLOT,
    SUPER_OFFSET,
    SUPERBLOCK,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    crc32c,
    label_of,
)

__all__ = ["DIRECTORY_TYPE", "SYMLINK_TYPE", "DeviceSlot", "Inode", "Tree"]

#: The file type of symbolic links, as directory entries carry it.
SYMLINK_TYPE = 7

_MAX_SYMLINKS = 40
#: Bytes of a directory of which it is looked for a name as they are; some two hundred names.
_SMALL_DIRECTORY = 8 << 10
#: The mode alone, where INODE has it.
_MODE = struct.Struct("<4xH")
_PREFIXES = dict(XATTR_PREFIXES)
_KNOWN_INCOMPAT = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE


class DeviceSlot(NamedTuple):
    """One slot of the device table: ``tag`` as written (64 bytes, NULs stripped), ``blocks`` of 512 bytes."""

    tag: bytes
    blocks: int


class Inode(NamedTuple):
    """One inode; the fields are those of ``stat``, ``mtime`` in seconds and ``mtime_ns`` the nanoseconds on top."""

    nid: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    nlink: int
    rdev: int
    # Where the rest lies: the data layout, i_u, and the byte ranges of xattrs and of what follows them.
    layout: int
    value: int
    xattr_start: int
    xattr_end: int


class Tree:
    """A file tree in an EROFS image. Thread-safe; directories are decoded once, when first looked at.

    Attributes:
        root: inode number of the root directory.
        devices: the device table, in order; :meth:`data` counts from 0 in it.
        inodes: how many inodes the image has.
        uuid: the 16 bytes of the superblock.
    """

    def __init__(self, buffer: bytes | memoryview) -> None:
        """Check the superblock.

        Args:
            buffer: the whole image; kept, and only ever read.

        Raises:
            FormatError: not an EROFS image, damaged, or cut short.
            UnsupportedFormat: an EROFS image with features that layerfs does not write.
        """
        self._buffer = memoryview(buffer)
        if len(self._buffer) < SUPER_OFFSET + BLOCK:
            raise FormatError("file is too short to be an EROFS image")
        (magic, checksum, compat, bits, slots, root, inodes, _, _, blocks, meta, xattr, self.uuid, self._label,
         incompat, codec, count, table, dirbits) = SUPERBLOCK.unpack_from(self._buffer, SUPER_OFFSET)  # fmt: skip
        if magic != MAGIC:
            raise FormatError("no EROFS superblock", where=f"@{SUPER_OFFSET:#x}")
        if bits != BLOCK_BITS or slots or dirbits or codec or incompat & ~_KNOWN_INCOMPAT:
            raise UnsupportedFormat("EROFS image uses features that layerfs does not write")
        block = bytearray(self._buffer[SUPER_OFFSET : SUPER_OFFSET + BLOCK])
        block[4:8] = bytes(4)
        if not compat & COMPAT_SB_CHECKSUM or crc32c(bytes(block)) != checksum:
            raise FormatError("superblock checksum is wrong", where=f"@{SUPER_OFFSET:#x}")
        if blocks << BLOCK_BITS > len(self._buffer):
            raise FormatError(f"image is cut short: {len(self._buffer)} bytes of {blocks << BLOCK_BITS}")
        self.inodes: int = inodes
        self.root: int = root
        self._meta = meta << BLOCK_BITS
        self._xattr = xattr << BLOCK_BITS
        self.devices = tuple(self._slots(table, count))
        self._names: dict[int, dict[bytes, tuple[int, int]]] = {}

    def is_whole(self) -> bool:
        """Return whether all of the image is what was written: the superblock is checked in any case, this is the rest.

        Blocking: reads it all, half a millisecond per megabyte that is in memory.
        """
        return bool(self._label == label_of(self._buffer))

    def _slots(self, table: int, count: int) -> Iterator[DeviceSlot]:
        if table * DEVICE_SLOT.size + count * DEVICE_SLOT.size > len(self._buffer):
            raise FormatError("device table leaves the image")
        start = table * DEVICE_SLOT.size
        for tag, blocks in DEVICE_SLOT.iter_unpack(self._buffer[start : start + count * DEVICE_SLOT.size]):
            yield DeviceSlot(tag.rstrip(b"\0"), blocks)

    def inode(self, nid: int) -> Inode:
        """Return an inode.

        Raises:
            FormatError: ``nid`` is not one, or its fields are impossible.
        """
        position = self._meta + nid * SLOT
        try:
            (form, icount, mode, _, size, value, _, uid, gid, mtime, mtime_ns, nlink) = INODE.unpack_from(
                self._buffer, position
            )
        except (struct.error, OverflowError) as error:
            raise FormatError(f"inode {nid} lies outside the image") from error
        layout = form >> 1
        if not form & 1 or layout not in (LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKED):
            raise FormatError(f"inode {nid} is of a form that layerfs does not write")
        if mtime_ns >= 1_000_000_000 or mode >> 12 not in FILE_TYPES:
            raise FormatError(f"inode {nid} has an impossible mode or time")
        start = position + INODE.size
        end = start + (12 + 4 * (icount - 1) if icount else 0)
        kind = stat.S_IFMT(mode)
        rdev = value if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return Inode(nid, mode, uid, gid, mtime, mtime_ns, size, nlink, rdev, layout, value, start, end)

    def fields(self, nid: int) -> tuple[int, int, int, int, int, int, int]:
        """Return (mode, links, owner, group, device, size, mtime in nanoseconds): a quicker :meth:`inode` for stat.

        Raises:
            FormatError: ``nid`` lies outside the image, or is of a form that layerfs does not write.
        """
        try:
            (form, _, mode, _, size, value, _, uid, gid, mtime, mtime_ns, nlink) = INODE.unpack_from(
                self._buffer, self._meta + nid * SLOT
            )
        except (struct.error, OverflowError) as error:
            raise FormatError(f"inode {nid} lies outside the image") from error
        if not form & 1:
            raise FormatError(f"inode {nid} is of a form that layerfs does not write")
        return mode, nlink, uid, gid, value if mode & 0xB000 == 0x2000 else 0, size, mtime * 1_000_000_000 + mtime_ns

    def mode(self, nid: int) -> int:
        """Return the mode of an inode alone.

        Raises:
            FormatError: ``nid`` lies outside the image.
        """
        try:
            return int(_MODE.unpack_from(self._buffer, self._meta + nid * SLOT)[0])
        except (struct.error, OverflowError) as error:
            raise FormatError(f"inode {nid} lies outside the image") from error

    @property
    def limit(self) -> int:
        """A number above that of every inode."""
        return int((len(self._buffer) - self._meta) // SLOT + 1)

    def names(self, nid: int) -> dict[bytes, tuple[int, int]]:
        """Return a directory as a dictionary of name to (inode number, file type), without ``.`` and ``..``.

        The dictionary is shared and must not be changed.

        Raises:
            OSError: ENOTDIR when ``nid`` is no directory.
            FormatError: the directory's data is damaged.
        """
        found = self._names.get(nid)
        if found is None:
            inode = self._directory_inode(nid)
            found = {}
            for names, children, kinds in self._blocks(inode):
                found.update(zip(names, zip(children, kinds, strict=True), strict=True))
            found.pop(b".", None)
            found.pop(b"..", None)
            self._names[nid] = found
        return found

    def scan(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the same as :meth:`readdir`, and keep nothing: for who walks a whole tree once.

        Raises:
            OSError: ENOTDIR when ``nid`` is no directory.
            FormatError: the directory's data is damaged.
        """
        for name, child, kind in self._entries(self._directory_inode(nid)):
            if name not in DOTS:
                yield name, child, kind

    def directory(self, nid: int) -> Directory:
        """Return a directory's entries by row, for who hands them out piece by piece; nothing is kept.

        Raises:
            OSError: ENOTDIR when ``nid`` is no directory.
            FormatError: the directory's data is damaged.
        """
        return Directory(nid, self._content(self._directory_inode(nid)))

    def drop_names(self, nid: int) -> None:
        """Forget a decoded directory, which the next look at it decodes again: for readers that must stay small."""
        self._names.pop(nid, None)

    def lookup(self, nid: int, name: bytes) -> int | None:
        """Return the inode number of a name in a directory, or None. Raises as :meth:`names`."""
        entry = self.names(nid).get(name)
        return entry[0] if entry else None

    def raw_names(self, nid: int) -> bytes | None:
        """Return the bytes of a small directory as they are; None for a larger one.

        A name that is not among them is certainly missing, which takes a tenth of the time that decoding takes.

        Raises:
            OSError: ENOTDIR when ``nid`` is no directory.
            FormatError: ``nid`` lies outside the image, or its data does.
        """
        inode = self._directory_inode(nid)
        return bytes(self._content(inode)) if inode.size <= _SMALL_DIRECTORY else None

    def readdir(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield (name, inode number, file type) in byte order of names, without ``.`` and ``..``."""
        for name, (child, kind) in self.names(nid).items():
            yield name, child, kind

    def resolve(self, path: bytes, *, follow: bool = True) -> int:
        """Return the inode number that a path leads to, from the root, symlinks resolved inside the tree.

        Args:
            path: with or without a leading slash; ``.`` and ``..`` are honoured, and ``..`` of the root is the root.
            follow: whether a symlink in the last place is followed too.

        Raises:
            OSError: ENOENT, ENOTDIR, or ELOOP after 40 symlinks.
        """
        names = self._names
        nid, kind = self.root, DIRECTORY_TYPE
        trail: list[int] = []
        todo = path.split(b"/")
        todo.reverse()
        links = 0
        while todo:
            name = todo.pop()
            if not name or name == b".":
                if kind != DIRECTORY_TYPE:
                    raise NotADirectoryError(ENOTDIR, strerror(ENOTDIR), path)
                continue
            if kind != DIRECTORY_TYPE:
                raise NotADirectoryError(ENOTDIR, strerror(ENOTDIR), path)
            if name == b"..":
                nid = trail.pop() if trail else self.root
                continue
            entry = (names.get(nid) or self.names(nid)).get(name)
            if entry is None:
                raise FileNotFoundError(ENOENT, strerror(ENOENT), path)
            if entry[1] == SYMLINK_TYPE and (follow or todo):  # a slash at the end of the path follows too
                links += 1
                if links > _MAX_SYMLINKS:
                    raise OSError(ELOOP, strerror(ELOOP), path)
                target = self.readlink(entry[0])
                if target.startswith(b"/"):
                    nid, trail = self.root, []
                todo += target.split(b"/")[::-1]
                continue
            trail.append(nid)
            nid, kind = entry
        return nid

    def readlink(self, nid: int) -> bytes:
        """Return a symlink's target.

        Raises:
            OSError: EINVAL when ``nid`` is no symlink.
        """
        inode = self.inode(nid)
        if not stat.S_ISLNK(inode.mode):
            raise OSError(EINVAL, strerror(EINVAL))
        return bytes(self._content(inode))

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode by full name, in byte order of names."""
        inode = self.inode(nid)
        if inode.xattr_end == inode.xattr_start:
            return {}
        found = {}
        try:
            _, shared = XATTR_HEADER.unpack_from(self._buffer, inode.xattr_start)
            position = inode.xattr_start + XATTR_HEADER.size
            for number in struct.unpack_from(f"<{shared}I", self._buffer, position):
                name, value, _ = self._xattr_entry(self._xattr + 4 * number)
                found[name] = value
            position += 4 * shared
            if position > inode.xattr_end:
                raise FormatError(f"xattrs of inode {nid} are damaged")
            while position < inode.xattr_end:
                name, value, position = self._xattr_entry(position)
                if position > inode.xattr_end:
                    raise FormatError(f"xattrs of inode {nid} are damaged")
                found[name] = value
        except struct.error as error:
            raise FormatError(f"xattrs of inode {nid} leave the image") from error
        return dict(sorted(found.items()))

    def data(self, nid: int) -> tuple[int, int] | None:
        """Return where a regular file's bytes lie: (index into :attr:`devices`, byte offset), None for empty files.

        The bytes are contiguous there, ``inode.size`` of them. The index behind the last, ``len(devices)``, means the
        image itself; see :meth:`carried`.

        Raises:
            FormatError: no regular file of this writer, or a device that the table does not have.
        """
        return self.file_data(self.inode(nid))

    def file_data(self, inode: Inode) -> tuple[int, int] | None:
        """As :meth:`data`, for an inode at hand."""
        if inode.layout != LAYOUT_CHUNKED:
            if inode.size:
                raise FormatError(f"inode {inode.nid} is no regular file with data of its own")
            return None
        device, offset = self._chunk_index(inode, 0)
        if not inode.value & CHUNK_INDEXES or device > len(self.devices):
            raise FormatError(f"inode {inode.nid} names device {device} of {len(self.devices)}")
        if device:
            return device - 1, offset
        if offset + inode.size > len(self._buffer):
            raise FormatError(f"inode {inode.nid} has its data outside the image")
        return len(self.devices), offset

    def carried(self, offset: int, size: int) -> memoryview:
        """Return bytes of a file that the image carries itself, from where :meth:`data` says that it lies."""
        return self._buffer[offset : offset + size]

    def origin(self, inode: Inode) -> tuple[int, int]:
        """Return where the bytes of a file that the image carries were taken from.

        Returns:
            The number of the layer in the chain that was merged, from 0 at the bottom, and the byte offset in its tar.
        """
        return self._chunk_index(inode, 1)

    def _chunk_index(self, inode: Inode, number: int) -> tuple[int, int]:
        """Return the device or layer that one of a file's chunk indexes names, and the byte offset there."""
        at = inode.xattr_end + -inode.xattr_end % 8 + CHUNK_INDEX.size * number
        try:
            _, device, block = CHUNK_INDEX.unpack_from(self._buffer, at)
        except struct.error as error:
            raise FormatError(f"inode {inode.nid} leaves the image") from error
        return device, block << BLOCK_BITS

    def _content(self, inode: Inode) -> memoryview:
        """Return the bytes of a directory or symlink."""
        start = inode.xattr_end if inode.layout == LAYOUT_INLINE else inode.value << BLOCK_BITS
        if inode.layout == LAYOUT_CHUNKED or start + inode.size > len(self._buffer):
            raise FormatError(f"inode {inode.nid} has its data outside the image")
        return self._buffer[start : start + inode.size]

    def _directory_inode(self, nid: int) -> Inode:
        """Return the inode of a directory; ENOTDIR for anything else."""
        inode = self.inode(nid)
        if not stat.S_ISDIR(inode.mode):
            raise NotADirectoryError(ENOTDIR, strerror(ENOTDIR))
        return inode

    def _entries(self, inode: Inode) -> Iterator[tuple[bytes, int, int]]:
        """Yield the raw entries of a directory."""
        for names, children, kinds in self._blocks(inode):
            yield from zip(names, children, kinds, strict=True)

    def _blocks(self, inode: Inode) -> Iterator[tuple[list[bytes], tuple[int, ...], tuple[int, ...]]]:
        """Yield the names, inode numbers and file types of each block of a directory."""
        content = bytes(self._content(inode))
        for start in range(0, len(content), BLOCK):
            yield decode_block(content[start : start + BLOCK], inode.nid)

    def _xattr_entry(self, position: int) -> tuple[bytes, bytes, int]:
        length, index, size = XATTR_ENTRY.unpack_from(self._buffer, position)
        prefix = _PREFIXES.get(index)
        start = position + XATTR_ENTRY.size
        end = start + length + size
        if prefix is None or end > len(self._buffer):
            raise FormatError("xattr entry is damaged", where=f"@{position:#x}")
        name = prefix + bytes(self._buffer[start : start + length])
        return name, bytes(self._buffer[start + length : end]), end + -end % 4
