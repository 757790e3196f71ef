"""The structures of the EROFS format: their sizes, and the checksum."""

from __future__ import annotations

import struct

import pytest

from layerfs.formats.erofs import layout


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (layout.SUPERBLOCK, 128),
        (layout.INODE, 64),
        (layout.CHUNK_INDEX, 8),
        (layout.DEVICE_SLOT, 128),
        (layout.DIRENT, 12),
        (layout.XATTR_HEADER, 12),
        (layout.XATTR_ENTRY, 4),
    ],
)
def test_structures_are_as_long_as_the_kernel_has_them(structure: struct.Struct, size: int) -> None:
    assert structure.size == size


@pytest.mark.parametrize(
    ("data", "checksum"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0)],
)
def test_crc32c(data: bytes, checksum: int) -> None:
    """The vectors of RFC 3720, B.4, which invert the result."""
    assert layout.crc32c(data) ^ 0xFFFFFFFF == checksum


def test_acl_names_come_before_prefixes() -> None:
    assert [name for _, name in layout.XATTR_PREFIXES[:2]] == [
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ]
