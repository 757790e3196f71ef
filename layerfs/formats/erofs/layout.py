"""The subset of the EROFS on-disk format that layerfs writes and reads.

Source: Linux fs/erofs/erofs_fs.h (the kernel's own reader is the reference). What is used:

- blocks of 512 bytes, because file data begins at multiples of 512 in a tar;
- extended inodes (64 bytes: 32-bit owners, nanosecond mtime), three data layouts: plain, inline, chunk-based;
- regular files as chunks with indexes into extra devices, one index per TiB: the devices are the layer tars; bytes that
  the image itself carries are in device 0, and behind the index of such a file stands one that the kernel does not look
  at, with the place that the bytes were taken from;
- inline and shared xattrs, no name filter, no long prefixes;
- the superblock checksum.

    superblock, at byte 1024 (SUPERBLOCK, 128 bytes)
    offset  size  field               meaning
    0       4     magic               0xE0F5E1E2
    4       4     checksum            CRC-32C of bytes 1024..1535 with this field 0, initial ~0, not inverted
    8       4     feature_compat      COMPAT_*
    12      1     blkszbits           9
    13      1     sb_extslots         0
    14      2     root_nid            inode number of the root
    16      8     inos                inodes in the image
    24      8     epoch               base of compact inodes' times: not used, 0
    32      4     fixed_nsec          same
    36      4     blocks              512-byte blocks of the image
    40      4     meta_blkaddr        block of inode number 0
    44      4     xattr_blkaddr       block of shared xattr number 0
    48      16    uuid
    64      16    volume_name         "layerfs ", and the CRC-32 of zlib over all behind the superblock in hex digits
    80      4     feature_incompat    INCOMPAT_*
    84      2     available_compr     0
    86      2     extra_devices       slots of the device table
    88      2     devt_slotoff        its place, in units of 128 bytes
    90      1     dirblkbits          0: directory blocks are file system blocks
    91      37    …                   0

    extended inode (INODE, 64 bytes)
    0       2     i_format            1 | layout << 1
    2       2     i_xattr_icount      0, or 1 + (bytes of xattrs - 12) / 4
    4       2     i_mode
    6       2     i_nb                0
    8       8     i_size
    16      4     i_u                 first block (plain), device number as os.makedev has it, or chunk format
    20      4     i_ino
    24      4     i_uid
    28      4     i_gid
    32      8     i_mtime             signed seconds
    40      4     i_mtime_nsec
    44      4     i_nlink
    48      16    reserved
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

__all__ = [
    "BLOCK",
    "BLOCK_BITS",
    "CHUNK_INDEX",
    "CHUNK_INDEXES",
    "COMPAT_MTIME",
    "COMPAT_SB_CHECKSUM",
    "DEVICE_SLOT",
    "DIRENT",
    "FILE_TYPES",
    "INCOMPAT_CHUNKED_FILE",
    "INCOMPAT_DEVICE_TABLE",
    "INODE",
    "LAYOUT_CHUNKED",
    "LAYOUT_INLINE",
    "LAYOUT_PLAIN",
    "MAGIC",
    "MAX_CHUNK_BITS",
    "SLOT",
    "SUPERBLOCK",
    "SUPER_OFFSET",
    "XATTR_ENTRY",
    "XATTR_HEADER",
    "XATTR_PREFIXES",
    "crc32c",
    "dirents",
    "label_of",
]

MAGIC = 0xE0F5E1E2
BLOCK_BITS = 9
BLOCK = 1 << BLOCK_BITS
SUPER_OFFSET = 1024

#: Inode numbers count 32-byte slots from meta_blkaddr.
SLOT = 32

COMPAT_SB_CHECKSUM = 0x1
COMPAT_MTIME = 0x2
INCOMPAT_CHUNKED_FILE = 0x4
INCOMPAT_DEVICE_TABLE = 0x8

LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKED = 0, 2, 4

#: Chunk format bits: the low five are log2(chunk size) - BLOCK_BITS, this one says that 8-byte indexes follow.
CHUNK_INDEXES = 0x20
MAX_CHUNK_BITS = BLOCK_BITS + 31

SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHB37x")
INODE = struct.Struct("<HHHHQIIIIqII16x")
#: high 16 bits of the block (0), device number (1 is the first slot of the device table), block; for where bytes were
#: taken from, the number of the layer in the image's chain, from 0 at the bottom, and the block in its tar
CHUNK_INDEX = struct.Struct("<HHI")
#: tag, blocks
DEVICE_SLOT = struct.Struct("<64sI60x")
#: inode number, offset of the name in the block, file type
DIRENT = struct.Struct("<QHBx")
#: name filter, shared count
XATTR_HEADER = struct.Struct("<IB7x")
#: name length, name prefix, value size
XATTR_ENTRY = struct.Struct("<BBH")

#: By S_IFMT >> 12.
FILE_TYPES = {0x8: 1, 0x4: 2, 0x2: 3, 0x6: 4, 0x1: 5, 0xC: 6, 0xA: 7}

#: Longest first: the two ACL names are whole names, not prefixes.
XATTR_PREFIXES = (
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (1, b"user."),
)


def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        value = row
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_CRC_TABLE = _table()


@lru_cache(maxsize=64)
def dirents(count: int) -> struct.Struct:
    """Return the form of so many directory entries in a row: one call for a block instead of one per entry."""
    return struct.Struct("<" + DIRENT.format.lstrip("<") * count)


def label_of(image: bytes | bytearray | memoryview, rest: Iterable[bytes] = ()) -> bytes:
    """Return the volume name of an image, by which it can be told whether all of it is what was written.

    Args:
        image: the image or, as long as it is in pieces, the first of these.
        rest: the others.
    """
    crc = crc32(memoryview(image)[SUPER_OFFSET + SUPERBLOCK.size :])
    for piece in rest:
        crc = crc32(piece, crc)
    return b"layerfs %08x" % crc


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) as the kernel's ``crc32c(~0, …)`` has it, without a final inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc
