"""Takes one layer's uncompressed tar as a stream and lays it down: the sparse tar, its tree, and what it shares.

One pass: every piece is parsed, and what no layer has yet is written at its own offset. A file whose bytes another
layer already holds is not written (or punched out again, when it began in an earlier piece): its range stays a hole,
and the tree points at the other layer. Equal files are found by size and mark and then compared: digesting every file
instead would cost a sixth of a load, for twins that are few.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from errno import EINVAL, ENOSPC, EOPNOTSUPP
from functools import partial
from typing import Protocol
from zlib import crc32

from layerfs.errors import LimitExceeded, quoted
from layerfs.formats.digest import Digest
from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.formats.tree import LayerTree, Node
from layerfs.linux.durable import drop_written, start_writeback
from layerfs.linux.sparse import copy_range, punch_hole

__all__ = ["MAX_LAYER", "MIN_SHARED", "Extent", "LayerKey", "LayerWriter", "Offer", "spread_range"]

#: Files below one file system block are not worth a record: their hole would free nothing.
MIN_SHARED = 4096

#: Bytes of one layer's tar, sparse files spread out included: what 32-bit block numbers of 512 bytes can reach.
MAX_LAYER = 0xFFFFFFFF * BLOCK

#: Bytes after which the kernel is asked to start writing, so that the final fsync finds little left to do.
_WRITEBACK = 8 << 20

#: Bytes of each layer that stay in the page cache. All of a large image there would push out what is in use, and pages
#: that were written before are cheaper than those that the host of a virtual machine has to find first: with 8, 32, 64
#: and 128 MiB a load of 1 GB behind other tools takes 2.6, 2.8, 3.1 and 3.4 s.
_CACHED = 8 << 20

#: A load stops before the file system is full: with less room than this, or a fiftieth of a small one, what else lives
#: there could not even write its log.
_SPACE_LEFT = 64 << 20

#: Bytes of two files compared at a time.
_COMPARED = 1 << 20


class LayerKey:
    """Stands for one layer in ``Node.device`` while its diffID may not be known yet. Compared by identity.

    Attributes:
        diff_id: the layer's digest, None until the whole layer was read.
        file_size: bytes of its tar file on disk, 0 until then.
    """

    __slots__ = ("diff_id", "file_size")

    def __init__(self, diff_id: Digest | None = None, file_size: int = 0) -> None:
        """Make a key, with what is known."""
        self.diff_id = diff_id
        self.file_size = file_size

    @property
    def known(self) -> Digest:
        """The diffID of a layer that was read to its end."""
        assert self.diff_id is not None
        return self.diff_id


#: Where a file's bytes lie: in which layer's tar, from which byte.
Offer = tuple[LayerKey, int]

#: Returns so many bytes from an offset.
_Read = Callable[[int, int], bytes]


@dataclass(slots=True)
class Extent:
    """A hole of the layer: ``size`` bytes at ``offset`` lie in the donor at ``donor_offset``; the file is ``node``."""

    offset: int
    size: int
    donor: LayerKey
    donor_offset: int
    node: Node
    mark: int


class Lenders(Protocol):
    """What a writer asks for files that exist already; :class:`layerfs.store.holders.Holders`."""

    def find(self, size: int, wanted: int) -> Iterable[Offer]:
        """Return where files of this size and mark lie, perhaps with other bytes."""

    def read(self, key: LayerKey, offset: int, size: int) -> bytes:
        """Return bytes of another layer."""


class LayerWriter:
    """One layer on its way into the store.

    Attributes:
        key: stands for this layer in its nodes; its ``file_size`` is set by :meth:`finish`, its diffID by the caller.
        tree: the tree so far; complete after :meth:`finish`.
        extents: holes, ascending.
        content: (offset, size, mark) of every file of at least :data:`MIN_SHARED` bytes that was really written.
        tar_size: bytes taken so far.
    """

    def __init__(self, path: str, lenders: Lenders | None, *, sync: bool) -> None:
        """Start a layer.

        Args:
            path: the file to write, made by this call.
            lenders: knows which files other layers hold already; None for a layer that is to hold all its bytes
                itself.
            sync: whether an fsync will follow.

        Raises:
            OSError: as open.
        """
        self.key = LayerKey()
        self.tree = LayerTree(self.key)
        self.extents: list[Extent] = []
        self.content: list[tuple[int, int, int]] = []
        self.tar_size = 0
        self._lenders = lenders
        self._own: dict[tuple[int, int], int] = {}  # where this layer holds a file of that size and mark
        self._sync = sync
        self._reader = TarReader()
        self._sparse: list[tuple[Member, Node]] = []
        self._open: tuple[Node, int | None, int, int] | None = None  # a file that goes on: node, crc, start, end
        self._written = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, chunk: bytes) -> None:
        """Take the next piece of the tar.

        Args:
            chunk: a multiple of 512 bytes, but for the last.

        Raises:
            FormatError: the tar breaks the rules of its format or of layers.
            LimitExceeded: it is larger than layerfs can address.
            OSError: ENOSPC, EIO.

        Blocking: writes to the page cache; the disk is not waited for.
        """
        base = self.tar_size
        end = self.tar_size = base + len(chunk)
        if end > MAX_LAYER:
            raise LimitExceeded(f"layer is larger than {MAX_LAYER} bytes")
        view = memoryview(chunk)
        holes: list[tuple[int, int]] = []
        if self._open is not None:
            node, first, start, stop = self._open
            if first is None:  # its data begins with this piece
                first = crc32(view[:BLOCK])
                self._open = (node, first, start, stop)
            if stop <= end:
                self._open = None
                self._settle(node, first, start, stop, base, view, holes)
        for member in self._reader.feed(chunk):
            node_or_none = self.tree.add(member)
            if node_or_none is None:
                continue
            node = node_or_none
            if member.sparse is not None:
                self._sparse.append((member, node))
                continue
            size = member.size
            if size < MIN_SHARED:
                continue
            start = member.data_offset
            stop = start + size
            at = start - base
            if stop <= end:
                self._settle(node, crc32(view[at : at + BLOCK]), start, stop, base, view, holes)
            else:
                self._open = (node, crc32(view[at : at + BLOCK]) if start < end else None, start, stop)
        self._store(chunk, view, base, holes)

    def finish(self) -> Node:
        """End the layer: check that it is complete, spread sparse files out, and return the finished tree's root.

        Raises:
            FormatError: the tar is truncated.
            LimitExceeded: its sparse files are larger than layerfs can address.
            OSError: ENOSPC, EIO.
        """
        self._reader.close()
        self.key.file_size = -(-self.tar_size // BLOCK) * BLOCK
        for member, node in self._sparse:
            self._spread(member, node)
        os.ftruncate(self._file, self.key.file_size)
        start_writeback(self._file, sync=self._sync)
        return self.tree.finish()

    def fill(self, tar_path: Callable[[LayerKey], str]) -> None:
        """Give the layer all its bytes: copy into each hole what its donor holds.

        Args:
            tar_path: the path of another layer's tar.

        Raises:
            OSError: ENOSPC, EIO, or a donor that is gone.
        """
        for extent in self.extents:
            if extent.donor is self.key:
                copy_range(self._file, extent.donor_offset, self._file, extent.offset, extent.size)
            else:
                donor = os.open(tar_path(extent.donor), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    copy_range(donor, extent.donor_offset, self._file, extent.offset, extent.size)
                finally:
                    os.close(donor)
            extent.node.device, extent.node.offset = self.key, extent.offset
            self.content.append((extent.offset, extent.size, extent.mark))
        self.extents.clear()

    def status(self) -> os.stat_result:
        """Return the status of the tar file."""
        return os.fstat(self._file)

    def close(self) -> None:
        """Close the file; it stays where it is."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _settle(
        self, node: Node, first: int, start: int, stop: int, base: int, view: memoryview, holes: list[tuple[int, int]]
    ) -> None:
        """Decide where a file lies of which all bytes are there: here, or where an equal one already is."""
        size = stop - start
        last = start + (size - 1) // BLOCK * BLOCK
        mark = crc32(view[last - base : stop - base], first)
        found = self._find_equal(start, size, mark, base, view) if self._lenders is not None else None
        if found is None or (start < base and not self._give_back(start, base - start)):
            self._own.setdefault((size, mark), start)
            self.content.append((start, size, mark))
            return
        node.device, node.offset = donor, offset = found
        self.extents.append(Extent(start, size, donor, offset, node, mark))
        holes.append((max(start - base, 0), stop - base))

    def _give_back(self, start: int, size: int) -> bool:
        """Return whether bytes that were written make room again; some file systems have no holes."""
        try:
            punch_hole(self._file, start, size)
        except OSError as error:
            if error.errno not in (EOPNOTSUPP, EINVAL):
                raise
            return False
        return True

    def _find_equal(self, start: int, size: int, mark: int, base: int, view: memoryview) -> Offer | None:
        """Return where the same bytes already lie, if anywhere. They are compared: a mark only says where to look."""
        assert self._lenders is not None
        earlier = self._own.get((size, mark))
        own = partial(self._read, base=base, view=view)
        if earlier is not None and _is_equal(own, start, own, earlier, size):
            return self.key, earlier
        for donor, offset in self._lenders.find(size, mark):
            if _is_equal(own, start, partial(self._lenders.read, donor), offset, size):
                return donor, offset
        return None

    def _read(self, offset: int, length: int, base: int, view: memoryview) -> bytes:
        """Return bytes of this layer: those from ``base`` on are still in the current piece."""
        if offset >= base:
            return bytes(view[offset - base : offset - base + length])
        written = os.pread(self._file, min(length, base - offset), offset)
        # Zeros were left out, also at the file's end so far.
        written = written.ljust(min(length, base - offset), b"\0")
        return written + view[: offset + length - base] if offset + length > base else written

    def _store(self, chunk: bytes, view: memoryview, base: int, holes: list[tuple[int, int]]) -> None:
        if not holes and chunk[0] == chunk[-1] == 0 and chunk.count(0) == len(chunk):
            return  # zeros stay a hole of the file
        position = 0
        for start, stop in (*holes, (len(chunk), len(chunk))):
            while position < start:
                position += os.pwrite(self._file, view[position:start], base + position)
            position = stop
        self._written += len(chunk)
        if self._written >= _WRITEBACK:
            self._written = 0
            self._refuse_full()
            start_writeback(self._file, sync=self._sync)
            if self._sync and base > _CACHED:
                drop_written(self._file, base - _CACHED)

    def _refuse_full(self) -> None:
        found = os.fstatvfs(self._file)
        if found.f_bavail * found.f_frsize < min(_SPACE_LEFT, found.f_blocks * found.f_frsize // 50):
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    def _spread(self, member: Member, node: Node) -> None:
        """Lay a sparse file out behind the tar, its holes as holes: only so is it one contiguous range of bytes."""
        assert member.sparse is not None
        start, self.key.file_size = spread_range(self.key.file_size, member)
        os.ftruncate(self._file, self.key.file_size)
        source = member.data_offset
        for offset, length in member.sparse:
            copy_range(self._file, source, self._file, start + offset, length)
            source += length
        node.offset = start


def _is_equal(one: _Read, at: int, other: _Read, other_at: int, size: int) -> bool:
    for position in range(0, size, _COMPARED):
        length = min(_COMPARED, size - position)
        if one(at + position, length) != other(other_at + position, length):
            return False
    return True


def spread_range(end: int, member: Member) -> tuple[int, int]:
    """Return where a sparse member is laid out behind a layer file of ``end`` bytes, and where the file ends then.

    Raises:
        LimitExceeded: that is beyond what layerfs can address.
    """
    start = -(-end // MIN_SHARED) * MIN_SHARED
    stop = start + -(-member.size // BLOCK) * BLOCK
    if stop > MAX_LAYER:
        raise LimitExceeded(f"sparse file {quoted(member.name)} of {member.size} bytes is too large")
    return start, stop
