r"""The 512-byte tar header block: its fields, numbers and checksum. Pure functions over bytes.

Sources: POSIX.1-2017 pax "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (base-256 numbers, the
``L``, ``K`` and ``S`` types).

    offset  size  field      meaning
    0       100   name       path, NUL-terminated unless it fills the field
    100     8     mode       octal
    108     8     uid        octal or base-256
    116     8     gid        octal or base-256
    124     12    size       bytes of data that follow, octal or base-256
    136     12    mtime      seconds since the epoch, octal or base-256
    148     8     chksum     sum of the block's bytes with this field as spaces
    156     1     typeflag   see TYPE_*
    157     100   linkname   target of links
    257     8     magic      "ustar\0" "00", or GNU's "ustar  \0"; anything else is v7
    265     32    uname      not used: layers carry numeric owners
    297     32    gname      not used
    329     8     devmajor   octal or base-256
    337     8     devminor   octal or base-256
    345     155   prefix     joined before name with "/" (POSIX ustar only)
    500     12    pad; star ends it with "tar\0"
"""

from __future__ import annotations

import struct
from zlib import adler32

from layerfs.errors import FormatError, quoted

__all__ = [
    "ADLER_MODULUS",
    "BLOCK",
    "HEADER",
    "NUL_BLOCK",
    "byte_sum",
    "checksum_matches",
    "old_prefix",
    "parse_number",
    "prefix_of",
]

BLOCK = 512

#: name mode uid gid size mtime chksum type linkname magic uname gname devmajor devminor prefix
HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")

NUL_BLOCK = bytes(BLOCK)

#: The modulus of Adler-32, whose low half is 1 + the sum of the bytes, modulo this.
ADLER_MODULUS = 65521

_OCTAL = b"01234567"


def checksum_matches(block: bytes) -> bool:
    """Return whether the header's checksum is right, counted unsigned or (as old tars did) signed.

    Adler-32's low half is the plain sum modulo 65521 and is computed in C, 30 times faster than ``sum(block)``; a sum
    that differs by exactly the modulus goes unnoticed, which a guard against accidents can afford.
    """
    field = block[148:156]
    try:
        stored = parse_number(field)
    except FormatError:
        return False
    total = (adler32(block) & 0xFFFF) - (adler32(field) & 0xFFFF) + 8 * 0x20
    if (stored - total) % ADLER_MODULUS == 0:
        return True
    blanked = block[:148] + b" " * 8 + block[156:BLOCK]
    signed: int = sum(struct.unpack("512b", blanked))
    return signed == stored


def byte_sum(block: bytes) -> int:
    """Return the sum of a block's bytes: exact, since half a block's is below the modulus of Adler-32."""
    half = BLOCK // 2
    return (adler32(block[:half]) & 0xFFFF) + (adler32(block[half:]) & 0xFFFF) - 2


def prefix_of(block: bytes) -> bytes:
    """Return what stands before the name in a header with POSIX's magic; star's has times behind 131 bytes of it."""
    end = 345 + (131 if block[508:] == b"tar\0" else 155)
    return block[345:end].partition(b"\0")[0]


def old_prefix(block: bytes) -> bytes:
    """Return what stands before the name in a header that says it is GNU's, and has a prefix all the same.

    GNU has times there. Go before 1.8, and so docker of that time, wrote such headers; Go takes for a prefix what is no
    time (archive/tar/reader.go, readHeader).
    """
    try:
        for start in (345, 357):
            if block[start]:
                parse_number(block[start : start + 12])
    except FormatError:
        found = block[345:500].partition(b"\0")[0]
        return found if found.isascii() else b""
    return b""


def parse_number(field: bytes) -> int:
    """Return the value of a numeric header field.

    Args:
        field: the whole field: octal digits in spaces and NULs, or GNU base-256 (first byte 0x80 or 0xff). An empty
            field is 0, as every reader has it. Leading NULs are skipped and the first one behind digits ends them, as
            in Go's reader: two programs that disagree about a size see two different archives.

    Raises:
        FormatError: any other byte; ``int()`` alone would take underscores, signs and ``0o``.
    """
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big")
        if first == 0xFF:
            return value - (1 << (8 * len(field)))
        if first != 0x80:
            raise FormatError(f"number field {quoted(field)} is neither octal nor base-256")
        return value ^ (0x80 << (8 * (len(field) - 1)))
    digits = field.strip(b" \0")
    if digits.translate(None, _OCTAL):
        digits = digits.partition(b"\0")[0].rstrip(b" ")
        if digits.translate(None, _OCTAL):
            raise FormatError(f"number field {quoted(field)} is not octal")
    return int(digits, 8) if digits else 0
