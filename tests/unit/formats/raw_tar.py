"""Tar archives put together byte by byte, so that tests can write what no tar program would."""

from __future__ import annotations

from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.formats.tree import LayerTree, Node

__all__ = ["END", "entry", "header", "layer", "octal", "pad", "pax", "read", "record"]

END = bytes(2 * BLOCK)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def header(
    name: bytes = b"f",
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\00000",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    rest: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """Return one header block; numbers are written in octal, bytes as they are."""

    def field(value: int | bytes, width: int) -> bytes:
        raw = octal(value, width) if isinstance(value, int) else value
        assert len(raw) <= width
        return raw.ljust(width, b"\0")

    block = (
        field(name, 100) + field(mode, 8) + field(uid, 8) + field(gid, 8) + field(size, 12) + field(mtime, 12)
        + b" " * 8 + kind + field(link, 100) + field(magic, 8) + bytes(64) + field(major, 8) + field(minor, 8)
        + field(prefix, 155) + rest.ljust(12, b"\0")
    )  # fmt: skip
    assert len(block) == BLOCK
    return block[:148] + (checksum if checksum is not None else b"%06o\0 " % sum(block)) + block[156:]


def entry(name: bytes = b"f", data: bytes = b"", **fields: int | bytes) -> bytes:
    """Return a regular file with its data."""
    return header(name, size=len(data), **fields) + pad(data)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record; its length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax(records: dict[bytes, bytes] | list[tuple[bytes, bytes]] | bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header with its payload."""
    if not isinstance(records, bytes):
        pairs = records.items() if isinstance(records, dict) else records
        records = b"".join(record(key, value) for key, value in pairs)
    return header(b"PaxHeaders/f", kind, len(records)) + pad(records)


def read(archive: bytes, step: int = 1 << 30) -> list[Member]:
    """Return the members of an archive that arrives in pieces of ``step`` bytes."""
    reader = TarReader()
    members: list[Member] = []
    for start in range(0, len(archive), step):
        members += reader.feed(archive[start : start + step])
    reader.close()
    return members


def layer(archive: bytes) -> Node:
    """Return the finished tree of a layer tar."""
    tree = LayerTree("layer")
    for member in read(archive):
        tree.add(member)
    return tree.finish()
