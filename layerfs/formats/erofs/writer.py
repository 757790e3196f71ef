"""Writes a tree as an EROFS image whose file data lies in other files, the layer tars, or is carried by the image.

The image is a pure function of the tree, the device list and the UUID: names are sorted, nothing depends on time,
memory addresses or dictionary order. See :mod:`layerfs.formats.erofs.layout` for the format.

The image is laid out as superblock, device table, shared xattrs, inodes, data blocks (large directories and
symlinks, carried files).
Inodes stand in breadth-first order, so that the inodes of one directory lie together.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from layerfs.errors import FormatError, LimitExceeded, quoted
from layerfs.formats.erofs.layout import (
    BLOCK,
    BLOCK_BITS,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    COMPAT_MTIME,
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
    MAX_CHUNK_BITS,
    SLOT,
    SUPER_OFFSET,
    SUPERBLOCK,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    crc32c,
    dirents,
    label_of,
)
from layerfs.formats.tree import Node

__all__ = ["MAX_DEVICE_BLOCKS", "Carried", "Device", "write_tree"]

#: Blocks of one device that a 32-bit block number reaches: 2 TiB.
MAX_DEVICE_BLOCKS = 0xFFFFFFFF

#: Values from this size on go into the shared area even when one inode alone has them: inodes stay close together, and
#: what i_xattr_icount can count is never exceeded by real files.
_LARGE_XATTR = BLOCK

#: i_xattr_icount is 16 bits and counts 4-byte units.
_MAX_INLINE_XATTRS = 12 + 4 * (0xFFFF - 1)

_INODE_SIZE = INODE.size
_CHUNK = 1 << MAX_CHUNK_BITS


#: An inode without xattrs and the one chunk index behind it, which stands at a multiple of 8 there.
_FILE = struct.Struct(INODE.format + CHUNK_INDEX.format.lstrip("<"))
_FILE_FORMAT = 1 | LAYOUT_CHUNKED << 1
_FILE_SIZE = -(-_FILE.size // SLOT) * SLOT


@dataclass(frozen=True, slots=True)
class Device:
    """One slot of the device table.

    Attributes:
        key: what ``Node.device`` holds for files in it.
        tag: at most 64 bytes that name it, the layer's diffID.
        blocks: its size in 512-byte blocks.
    """

    key: object
    tag: bytes
    blocks: int


@dataclass(frozen=True, slots=True)
class Carried:
    """A layer whose files' bytes the image carries itself, instead of naming its tar as a device.

    Attributes:
        key: what ``Node.device`` holds for files in it.
        position: its number in the image's chain, from 0 at the bottom, which each of its files remembers.
        content: the bytes of each of its files, by offset in its tar and size.
    """

    key: object
    position: int
    content: Mapping[tuple[int, int], bytes]


def write_tree(root: Node, devices: Sequence[Device], uuid: bytes, carried: Iterable[Carried] = ()) -> bytes:
    """Return the EROFS image of a tree.

    Args:
        root: a directory. The writer uses the nodes' scratch fields: one tree is written by one thread at a time.
        devices: the layer tars, in the order of the ``device=`` options of a mount; every ``Node.device`` below
            ``root`` must be the key of one, or of one of ``carried``.
        uuid: 16 bytes for the superblock.
        carried: the layers whose files are put into the image, each of less than a tebibyte.

    Raises:
        LimitExceeded: xattrs, a device or the image beyond what the format can hold.
        FormatError: a name or xattr that the format cannot hold, or a file outside its device.
    """
    return _Writer(devices, carried).write(root, uuid)


class _Directory:
    """A directory under way: its entries in order, by columns, and the blocks they fill."""

    __slots__ = ("blocks", "names", "nodes", "size")

    def __init__(self, names: list[bytes], nodes: list[Node]) -> None:
        self.names = names
        self.nodes = nodes
        self.blocks, self.size = _pack(names)  # index of the first entry of each block; bytes


class _Writer:
    """One run; holds what the passes hand to each other."""

    def __init__(self, devices: Sequence[Device], carried: Iterable[Carried]) -> None:
        self._devices = devices
        for device in devices:
            if device.blocks > MAX_DEVICE_BLOCKS:
                raise LimitExceeded(f"layer of {device.blocks * BLOCK} bytes, at most {MAX_DEVICE_BLOCKS * BLOCK}")
        #: Number in the table, 0 for the image itself, and size in bytes.
        self._slots = {device.key: (index + 1, device.blocks * BLOCK) for index, device in enumerate(devices)}
        self._carried = {layer.key: layer for layer in carried}
        self._slots |= dict.fromkeys(self._carried, (0, MAX_DEVICE_BLOCKS * BLOCK))
        self._nodes: list[Node] = []
        self._directories: dict[int, _Directory] = {}
        self._xattrs: dict[int, bytes] = {}
        self._shared: dict[tuple[bytes, bytes], int] = {}
        self._data: list[bytes] = []
        self._data_blocks = 0
        self._taken: dict[tuple[object, int, int], int] = {}

    def write(self, root: Node, uuid: bytes) -> bytes:
        self._collect(root)
        shared = self._share_xattrs()
        # Inode numbers count from the block before the inodes: were the root number 0, C libraries would take its
        # entries "." and ".." for deleted ones, and some programs its st_ino for none.
        meta = _align(SUPER_OFFSET + SUPERBLOCK.size + DEVICE_SLOT.size * len(self._devices), BLOCK)
        xattr_block = meta >> BLOCK_BITS
        meta = _align(meta + len(shared), BLOCK)
        end = _align(self._place(meta), BLOCK)
        meta -= BLOCK
        image = bytearray(end)
        image[xattr_block << BLOCK_BITS : (xattr_block << BLOCK_BITS) + len(shared)] = shared
        self._write_inodes(image, meta, end >> BLOCK_BITS)
        total = (end >> BLOCK_BITS) + self._data_blocks
        if total > MAX_DEVICE_BLOCKS:
            raise LimitExceeded("tree is too large for one EROFS image")
        self._write_superblock(image, uuid, total, meta >> BLOCK_BITS, xattr_block, (root.position - meta) // SLOT)
        return b"".join((image, *self._data))

    def _collect(self, root: Node) -> None:
        """List every inode once, in breadth-first order, and count its names."""
        token = object()
        nodes = self._nodes
        nodes.append(root)
        root.seen = token
        root.links = 2
        queue = [(root, root)]
        for node, parent in queue:
            children = node.children
            assert children is not None
            names = sorted(children)
            entries = [children[name] for name in names]
            for child in entries:
                if child.children is not None:
                    child.seen = token
                    child.links = 2
                    node.links += 1
                    queue.append((child, node))
                    nodes.append(child)
                elif child.seen is token:
                    child.links += 1
                else:
                    child.seen = token
                    child.links = 1
                    nodes.append(child)
            for name, target in ((b".", node), (b"..", parent)):
                at = bisect_left(names, name)
                names.insert(at, name)
                entries.insert(at, target)
            self._directories[id(node)] = _Directory(names, entries)

    def _share_xattrs(self) -> bytes:
        """Encode the xattrs of all nodes; those that several inodes carry go into the shared area, returned."""
        counts: dict[tuple[bytes, bytes], int] = {}
        carriers = [node for node in self._nodes if node.xattrs]
        for node in carriers:
            for item in (node.xattrs or {}).items():
                counts[item] = counts.get(item, 0) + 1
        area = bytearray()
        for item in sorted(item for item, count in counts.items() if count > 1 or len(item[1]) >= _LARGE_XATTR):
            self._shared[item] = len(area) // 4
            area += _xattr_entry(*item)
        encoded: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        for node in carriers:
            items = tuple(sorted((node.xattrs or {}).items()))
            body = encoded.get(items)
            if body is None:
                body = encoded[items] = self._inline_xattrs(items)
            self._xattrs[id(node)] = body
        return bytes(area)

    def _inline_xattrs(self, items: Iterable[tuple[bytes, bytes]]) -> bytes:
        shared = [self._shared[item] for item in items if item in self._shared][:255]
        kept = set(shared)
        own = b"".join(_xattr_entry(*item) for item in items if self._shared.get(item, -1) not in kept)
        body = XATTR_HEADER.pack(0, len(shared)) + struct.pack(f"<{len(shared)}I", *shared) + own
        if len(body) > _MAX_INLINE_XATTRS:
            raise LimitExceeded(f"xattrs of one file take {len(body)} bytes, at most {_MAX_INLINE_XATTRS} fit")
        return body

    def _place(self, position: int) -> int:
        """Give every inode its position; return the end of the last."""
        directories, xattrs = self._directories, self._xattrs
        for node in self._nodes:
            # An inode does not cross a block. Nor does the content of a directory or symlink that stands inline, with
            # the xattrs before it: kernels before 6.9 refuse symlinks whose xattrs cross one.
            if position & (BLOCK - 1) > BLOCK - _INODE_SIZE:
                position = _align(position, BLOCK)
            if node.xattrs is None and 0 < node.size <= _CHUNK and node.children is None and node.target is None:
                node.position = position
                position += _FILE_SIZE
                continue
            size = _INODE_SIZE
            if node.xattrs is not None:
                size += len(xattrs[id(node)])
            if node.children is not None:
                tail = directories[id(node)].size
                position, inline = _fit(position, size, tail)
                tail = tail if inline else 0
            elif node.target is not None:
                position, inline = _fit(position, size, len(node.target))
                tail = len(node.target) if inline else 0
            elif node.size:
                tail = _align(size, 8) - size + 8 * (-(-node.size // _CHUNK) + (node.device in self._carried))
            else:
                tail = 0
            node.position = position
            position = _align(position + size + tail, SLOT)
        return position

    def _write_inodes(self, image: bytearray, meta: int, data_block: int) -> None:
        pack, pack_file = INODE.pack_into, _FILE.pack_into
        slots = self._slots
        for number, node in enumerate(self._nodes, 1):
            position = node.position
            mode = node.mode
            if node.xattrs is None and 0 < node.size <= _CHUNK and node.children is None and node.target is None:
                # Nine of ten inodes, in one call: this pass takes 0.24 s for 0.35 of 110,000 of them.
                size, offset = node.size, node.offset
                slot, end = slots[node.device]
                if offset + size > end:
                    raise FormatError(f"a file at {offset}+{size} lies outside its device of {end} bytes")
                bits = (size - 1).bit_length()
                pack_file(
                    image, position, _FILE_FORMAT, 0, mode, 0, size,
                    CHUNK_INDEXES | (bits - BLOCK_BITS if bits > BLOCK_BITS else 0), number, node.uid, node.gid,
                    node.mtime, node.mtime_ns, node.links, 0, slot,
                    offset >> BLOCK_BITS if slot else self._carry(image, position + _FILE.size, node, data_block),
                )  # fmt: skip
                continue
            size = value = 0
            layout = LAYOUT_PLAIN
            body = b"" if node.xattrs is None else self._xattrs[id(node)]
            after = position + _INODE_SIZE
            if body:
                image[after : after + len(body)] = body
                after += len(body)
            if node.children is not None or node.target is not None:
                if node.children is not None:
                    content = _encode(self._directories[id(node)], meta)
                else:
                    content = node.target or b""
                size = len(content)
                if position % BLOCK + (after - position) + size <= BLOCK:  # the rule of _fit, which left the room
                    layout = LAYOUT_INLINE
                    image[after : after + size] = content
                else:
                    value = data_block + self._data_blocks
                    self._append(content)
            elif node.size:
                size = node.size
                layout = LAYOUT_CHUNKED
                bits = max((size - 1).bit_length(), BLOCK_BITS)
                value = CHUNK_INDEXES | (min(bits, MAX_CHUNK_BITS) - BLOCK_BITS)
                slot, end = slots[node.device]
                if node.offset + size > end:
                    raise FormatError(f"a file at {node.offset}+{size} lies outside its device of {end} bytes")
                at = after + -after % 8
                if not slot:
                    block = self._carry(image, at + CHUNK_INDEX.size, node, data_block)
                    CHUNK_INDEX.pack_into(image, at, 0, slot, block)
                elif size <= _CHUNK:
                    CHUNK_INDEX.pack_into(image, at, 0, slot, node.offset >> BLOCK_BITS)
                else:
                    for start in range(0, size, _CHUNK):
                        CHUNK_INDEX.pack_into(image, at, 0, slot, (node.offset + start) >> BLOCK_BITS)
                        at += 8
            elif node.rdev:
                value = node.rdev
            pack(
                image, position, 1 | layout << 1, 1 + (len(body) - 12) // 4 if body else 0, mode, 0, size, value,
                number, node.uid, node.gid, node.mtime, node.mtime_ns, node.links,
            )  # fmt: skip

    def _carry(self, image: bytearray, at: int, node: Node, data_block: int) -> int:
        """Take a file's bytes into the image, note at ``at`` where they are from, and return their block."""
        layer = self._carried[node.device]
        CHUNK_INDEX.pack_into(image, at, 0, layer.position, node.offset >> BLOCK_BITS)
        known = self._taken.get((node.device, node.offset, node.size))
        if known is None:
            known = self._taken[node.device, node.offset, node.size] = data_block + self._data_blocks
            self._append(layer.content[node.offset, node.size])
        return known

    def _append(self, content: bytes) -> None:
        self._data.append(content)
        if padding := -len(content) % BLOCK:
            self._data.append(bytes(padding))
        self._data_blocks += -(-len(content) // BLOCK)

    def _write_superblock(
        self, image: bytearray, uuid: bytes, total: int, meta_block: int, xattr_block: int, root: int
    ) -> None:
        count = len(self._devices)
        incompat = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE if count else INCOMPAT_CHUNKED_FILE
        at = SUPER_OFFSET + SUPERBLOCK.size
        for device in self._devices:
            DEVICE_SLOT.pack_into(image, at, device.tag, device.blocks)
            at += DEVICE_SLOT.size
        SUPERBLOCK.pack_into(
            image, SUPER_OFFSET, MAGIC, 0, COMPAT_SB_CHECKSUM | COMPAT_MTIME, BLOCK_BITS, 0, root, len(self._nodes),
            0, 0, total, meta_block, xattr_block, uuid, label_of(image, self._data), incompat, 0, count,
            (SUPER_OFFSET + 128) // 128, 0,
        )  # fmt: skip
        checksum = crc32c(bytes(image[SUPER_OFFSET : SUPER_OFFSET + BLOCK]))
        struct.pack_into("<I", image, SUPER_OFFSET + 4, checksum)


def _align(position: int, unit: int) -> int:
    return -(-position // unit) * unit


def _fit(position: int, size: int, content: int) -> tuple[int, bool]:
    """Return where an inode of ``size`` bytes goes, and whether its content fits behind it in the same block."""
    if position % BLOCK + size + content <= BLOCK:
        return position, True
    if size + content <= BLOCK:
        return _align(position, BLOCK), True
    return position, False


def _pack(names: list[bytes]) -> tuple[list[int], int]:
    """Divide sorted names into blocks, of which each holds 12 bytes and the name of every entry.

    Returns:
        The index of the first name of each block, and the bytes of them all.
    """
    lengths = [*map(len, names)]
    if not 0 < min(lengths) <= max(lengths) <= 255:
        raise FormatError(f"a name of {max(lengths) if min(lengths) else 0} bytes cannot be written")
    starts = [0]
    used = sum(lengths) + 12 * len(lengths)
    if used > BLOCK:
        used = 0
        for index, length in enumerate(lengths):
            needed = 12 + length
            if used + needed > BLOCK:
                starts.append(index)
                used = 0
            used += needed
    return starts, (len(starts) - 1) * BLOCK + used


def _encode(found: _Directory, meta: int) -> bytes:
    """Return a directory's data; every block but the last is padded with zeros."""
    if len(found.blocks) == 1:
        return _encode_block(found.names, found.nodes, meta)
    stops = [*found.blocks[1:], len(found.names)]
    blocks = [
        _encode_block(found.names[start:stop], found.nodes[start:stop], meta)
        for start, stop in zip(found.blocks, stops, strict=True)
    ]
    last = blocks.pop()
    return b"".join([*(block.ljust(BLOCK, b"\0") for block in blocks), last])


def _encode_block(names: list[bytes], nodes: list[Node], meta: int) -> bytes:
    count = len(names)
    fields = [0] * (3 * count)
    fields[::3] = [(node.position - meta) // SLOT for node in nodes]
    # The end of the last name is one too many.
    fields[1::3] = [*accumulate(map(len, names), initial=12 * count)][:count]
    fields[2::3] = [FILE_TYPES[node.mode >> 12] for node in nodes]
    return dirents(count).pack(*fields) + b"".join(names)


def _xattr_entry(name: bytes, value: bytes) -> bytes:
    """Return one entry, padded to 4 bytes."""
    for index, prefix in XATTR_PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            if (rest and index not in (2, 3)) or (not rest and index in (2, 3)):
                break
    else:
        raise FormatError(f"xattr {quoted(name, 80)} is in no namespace of EROFS (user, trusted, security, ACL)")
    if len(rest) > 255 or len(value) > 0xFFFF:
        raise LimitExceeded(f"xattr {quoted(name, 80)} of {len(value)} bytes is too long")
    entry = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)
