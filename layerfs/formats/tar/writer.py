"""Writing tar headers: ustar where it suffices, PAX records for what it cannot say. Pure functions.

The same member always gives the same bytes: nothing depends on the day, the machine or the order of a dictionary. No
user names are written, because layers carry numeric owners. Whatever :class:`~layerfs.formats.tar.reader.TarReader`
can read of a plain file comes back from it as it was.

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; star(5) for ``SCHILY.xattr.``;
libarchive's tar(5) for the form of names that hold a ``=``.
"""

from __future__ import annotations

import base64

from layerfs.errors import FormatError, quoted
from layerfs.formats.tar.header import BLOCK, HEADER, byte_sum
from layerfs.formats.tar.member import Member

__all__ = ["END", "clamp_time", "encode_member", "padding"]

#: What ends an archive.
END = bytes(2 * BLOCK)

_MAGIC = b"ustar\x0000"
_NAME, _PREFIX = 100, 155

#: The largest numbers of the octal fields, one byte of each being the NUL behind it.
_MAX_7, _MAX_11 = 8**7 - 1, 8**11 - 1

#: What is followed by data.
_CONTENT_KINDS = b"0"


def encode_member(member: Member) -> bytes:
    """Return the header of a member: one block, after a PAX header where one is needed. Its data follows.

    Args:
        member: what to write. Its places in an archive (offsets) are not looked at, and a sparse map must be None: a
            file with holes is written plain.

    Raises:
        FormatError: a name or a link with a NUL, which no archive can hold.
    """
    name, link = member.name, member.link
    if b"\0" in name or b"\0" in link or not name:
        raise FormatError(f"{quoted(name)} or its link {quoted(link)} cannot be written: empty, or with a NUL")
    records: dict[bytes, bytes] = {}
    short, prefix = _split(name)
    if len(short) > _NAME:
        records[b"path"] = name
    if len(link) > _NAME:
        records[b"linkpath"] = link
    size = member.size if member.kind in _CONTENT_KINDS else 0
    if size > _MAX_11:
        records[b"size"] = b"%d" % size
    if member.uid > _MAX_7:
        records[b"uid"] = b"%d" % member.uid
    if member.gid > _MAX_7:
        records[b"gid"] = b"%d" % member.gid
    if member.mtime_ns or not 0 <= member.mtime <= _MAX_11:
        records[b"mtime"] = _decimal(member.mtime, member.mtime_ns)
    for key, value in (member.xattrs or {}).items():
        if b"=" in key:
            from urllib.parse import quote_from_bytes  # noqa: PLC0415 - few have such names, and all need a quick start

            coded = quote_from_bytes(key, safe="").encode()
            records[b"LIBARCHIVE.xattr." + coded] = base64.b64encode(value).rstrip(b"=")
        else:
            records[b"SCHILY.xattr." + key] = value
    header = _block(
        short, member.kind, link, member.mode, min(member.uid, _MAX_7), min(member.gid, _MAX_7), min(size, _MAX_11),
        min(max(member.mtime, 0), _MAX_11), member.major, member.minor, prefix,
    )  # fmt: skip
    if not records:
        return header
    payload = b"".join(_record(key, records[key]) for key in sorted(records))
    place = b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2][:80]
    extension = _block(place, b"x", b"", 0o644, 0, 0, len(payload), 0, 0, 0, b"")
    return extension + payload + padding(len(payload)) + header


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of that many bytes."""
    return bytes(-size % BLOCK)


def clamp_time(member: Member, latest: int | None) -> None:
    """Turn a time after ``latest`` (seconds since the epoch, None for no limit) into it, as SOURCE_DATE_EPOCH asks."""
    if latest is not None and (member.mtime, member.mtime_ns) > (latest, 0):
        member.mtime, member.mtime_ns = latest, 0


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Return name and prefix of a ustar header; a name longer than its field when there is no place to split it."""
    if len(name) <= _NAME:
        return name, b""
    # The slash before the name, as far to the right as the prefix reaches; the rest has to fit behind it.
    at = name.rfind(b"/", 0, _PREFIX + 1)
    if at > 0 and 0 < len(name) - at - 1 <= _NAME:
        return name[at + 1 :], name[:at]
    return name, b""


def _block(
    name: bytes,
    kind: bytes,
    link: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    major: int,
    minor: int,
    prefix: bytes,
) -> bytes:
    block = HEADER.pack(
        name, b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid, b"%011o\0" % size, b"%011o\0" % mtime,
        b" " * 8, kind, link, _MAGIC, b"", b"", b"%07o\0" % major, b"%07o\0" % minor, prefix,
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % byte_sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    if len(str(size)) > len(str(rest)):
        size += 1
    return b"%d %b=%b\n" % (size, key, value)


def _decimal(seconds: int, nanoseconds: int) -> bytes:
    """Return a time as a decimal number without zeros at its end."""
    sign = b""
    if seconds < 0:
        # 0.75 s after second -2 is -1.25.
        sign = b"-"
        seconds, nanoseconds = (-seconds - 1, 1_000_000_000 - nanoseconds) if nanoseconds else (-seconds, 0)
    return sign + (b"%d.%09d" % (seconds, nanoseconds)).rstrip(b"0").rstrip(b".")
