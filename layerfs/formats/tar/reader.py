"""A streaming reader of tar headers: v7, ustar, GNU and PAX, names as bytes.

The reader is fed the archive piece by piece and hands back the members whose headers it has seen. It never sees file
contents as such: the caller knows from each member where its data lies, and takes it from the same pieces. So the
reader does no I/O, keeps no file data, and its memory does not grow with the size of the files.

Sources: POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; where readers differ, what
Go's archive/tar does, because it is what the other container tools are built on.
"""

from __future__ import annotations

import base64
import binascii

from layerfs.errors import DamagedData, FormatError, LimitExceeded, UnsupportedFormat, quoted
from layerfs.formats.tar.header import BLOCK, HEADER, NUL_BLOCK, checksum_matches, old_prefix, parse_number, prefix_of
from layerfs.formats.tar.member import MAX_ID, Member
from layerfs.formats.tar.pax import parse_records, parse_time
from layerfs.formats.tar.plain import PlainHeaders
from layerfs.formats.tar.sparse import MAX_PIECES, check_map, map_from_records, pieces_of_block, text_map

__all__ = ["MAX_EXTENSION", "MAX_MEMBERS", "TarReader"]

#: Bytes of PAX and GNU extension headers before one member. The largest real ones carry xattrs (64 KiB each); Go's
#: reader stops at 1 MiB too (CVE-2022-2879 was the missing limit).
MAX_EXTENSION = 1 << 20

#: Members of one archive. The largest real layers have under two million; each costs some 700 bytes of memory.
MAX_MEMBERS = 2_500_000

#: Sizes and times are signed 64-bit numbers to every kernel; nothing beyond can be real.
_MAX_SIZE = (1 << 63) - 1

#: What a global PAX header may not set: then readers that ignore such headers (Go's, hence most container tools) and
#: readers that honour them would see different members in one archive.
_NEVER_GLOBAL = (b"path", b"linkpath", b"size", b"GNU.sparse.")

#: Linux device numbers: 12 bits of major, 20 of minor (include/linux/kdev_t.h).
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1

_HEADER_ONLY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_REGULAR = {b"7": b"0", b"S": b"0"}

_PAX_NUMBERS = (b"uid", b"gid", b"size")


class TarReader:
    """Parses a tar archive that arrives in pieces.

    Attributes:
        position: bytes fed so far.
        ended: whether the end-of-archive marker (or its first block) was seen; what follows is ignored.
    """

    def __init__(self) -> None:
        """Start at the first byte of an archive."""
        self.position = 0
        self.ended = False
        self._next = 0  # where the next header, or the next wanted byte of an extension, lies
        self._skipping_to = 0  # end of the file data being passed over, for the truncation check
        self._start = -1  # first block of the member under way, -1 between members
        self._members = 0
        self._wanted = 0  # bytes of extension payload (padded) still to gather
        self._gathered: list[bytes] = []
        self._payload_kind = b""
        self._payload_size = 0
        self._extension_bytes = 0
        self._records: list[tuple[bytes, bytes]] = []
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._closing = False  # the first of the two zero blocks of the end marker was seen
        self._pending: Member | None = None  # an old GNU sparse member that wants extension blocks
        self._sparse_pieces: list[tuple[int, int]] = []
        self._sparse_text: Member | None = None
        self._plain = PlainHeaders()

    def feed(self, chunk: bytes) -> list[Member]:
        """Take the next piece of the archive and return the members whose headers are now complete, in order.

        Args:
            chunk: a multiple of 512 bytes, but for the last piece of an archive that ends unevenly.

        Raises:
            FormatError: the stream is no tar, or breaks its rules; ``where`` is the byte offset.
            UnsupportedFormat: a member of a type that cannot be honoured.
            LimitExceeded: extension headers or members beyond the limits.
        """
        base = self.position
        end = base + len(chunk)
        self.position = end
        members: list[Member] = []
        while self._next < end and not self.ended:
            at = self._next - base
            try:
                if self._wanted:
                    self._gather(chunk, at, members)
                else:
                    block = chunk[at : at + BLOCK]
                    if len(block) < BLOCK and not self._next:
                        raise FormatError(f"{len(block)} bytes are no tar archive")
                    if len(block) < BLOCK:
                        raise DamagedData("archive ends inside a header")
                    self._block(block, members)
            except FormatError as error:
                if error.where:
                    raise
                raise type(error)(str(error), where=f"tar@{self._next:#x}") from error
        return members

    def skip(self) -> int:
        """Pass over file data without feeding it; return the offset that the next fed piece must come from.

        For archives that can be read at any place.
        """
        self.position = max(self.position, self._next)
        return self.position

    def close(self) -> None:
        """Check that the archive ended between two members.

        A layer without its end marker is accepted, as by every other reader, and without what pads its last file.

        Raises:
            FormatError: it ends inside a member's headers or data.
        """
        if self.ended:
            return
        if self._start >= 0 or self.position < self._skipping_to:
            raise DamagedData("archive is truncated", where=f"tar@{self.position:#x}")

    def _block(self, block: bytes, members: list[Member]) -> None:
        """Take one header block at the current position."""
        if self._pending is not None:
            self._sparse_extension(self._pending, block, members)
            return
        if self._start < 0 and not self._closing:
            member = self._plain.parse(block, self._next)
            if member is not None:
                self._append(member, members)
                return
        (name, mode, uid, gid, size, mtime, _, kind, link, magic, _, _, major, minor, prefix) = HEADER.unpack(block)
        if not name[0] and block == NUL_BLOCK:
            if self._start >= 0:
                raise DamagedData("archive ends after an extension header")
            self._next += BLOCK
            self.ended, self._closing = self._closing, True
            return
        if self._closing:
            raise FormatError("a lone block of zeros stands between two members")
        if not checksum_matches(block):
            raise FormatError("header checksum is wrong: not a tar archive, or a damaged one")
        if self._start < 0:
            self._start = self._next
        if kind in b"xgLKX":
            self._begin_extension(kind, parse_number(size))
            return
        name = name.partition(b"\0")[0]
        if prefix[0]:
            if magic[:6] == b"ustar\0":
                name = prefix_of(block) + b"/" + name
            elif magic[:6] == b"ustar " and (old := old_prefix(block)):
                name = old + b"/" + name
        length = parse_number(size)
        self._next += BLOCK
        member = Member(
            name, _REGULAR.get(kind, kind), parse_number(mode) & 0o7777, parse_number(uid), parse_number(gid),
            parse_number(mtime), 0, length, link.partition(b"\0")[0], 0, 0, None, self._start, self._next, length, None,
        )  # fmt: skip
        if kind in b"34":
            member.major, member.minor = parse_number(major), parse_number(minor)
        if kind == b"S":
            self._begin_sparse(block, member, members)
            return
        self._finish(member, members)

    def _begin_extension(self, kind: bytes, size: int) -> None:
        if size < 0:
            raise FormatError("extension header has a negative size")
        self._extension_bytes += size + BLOCK
        if self._extension_bytes > MAX_EXTENSION:
            raise LimitExceeded(f"extension headers of one member exceed {MAX_EXTENSION} bytes")
        self._next += BLOCK
        self._payload_kind, self._payload_size = kind, size
        self._gathered = []
        self._wanted = -(-size // BLOCK) * BLOCK
        if not self._wanted:
            self._extension(b"")

    def _gather(self, chunk: bytes, at: int, members: list[Member]) -> None:
        piece = chunk[at : at + self._wanted]
        self._gathered.append(piece)
        self._next += len(piece)
        self._wanted -= len(piece)
        if self._wanted:
            return
        payload = b"".join(self._gathered)
        if self._sparse_text is not None:
            self._sparse_text_block(payload, members)
            return
        self._gathered = []
        self._extension(payload[: self._payload_size])

    def _extension(self, payload: bytes) -> None:
        kind = self._payload_kind
        if kind == b"g":
            if self._records or self._long_name is not None or self._long_link is not None:
                # Some readers forget what came before, some keep it.
                raise FormatError("a global pax header stands between a member and its extension header")
            for key, _ in parse_records(payload):
                if key.startswith(_NEVER_GLOBAL):
                    raise UnsupportedFormat(f"global pax header sets {key[:80].decode(errors='replace')!r}")
            self._start = -1
            self._extension_bytes = 0
        elif kind == b"L":
            self._long_name = payload.partition(b"\0")[0]
        elif kind == b"K":
            self._long_link = payload.partition(b"\0")[0]
        else:
            self._records = parse_records(payload)

    def _begin_sparse(self, block: bytes, member: Member, members: list[Member]) -> None:
        pieces, more = pieces_of_block(block, extension=False)
        self._sparse_pieces = pieces
        member.size = parse_number(block[483:495])
        if more:
            self._pending = member
            return
        member.sparse = tuple(pieces)
        self._finish(member, members)

    def _sparse_extension(self, member: Member, block: bytes, members: list[Member]) -> None:
        pieces, more = pieces_of_block(block, extension=True)
        self._sparse_pieces += pieces
        if len(self._sparse_pieces) > MAX_PIECES:
            raise LimitExceeded(f"sparse map has more than {MAX_PIECES} pieces")
        self._next += BLOCK
        if more:
            return
        self._pending = None
        member.data_offset = self._next
        member.sparse = tuple(self._sparse_pieces)
        self._finish(member, members)

    def _finish(self, member: Member, members: list[Member]) -> None:
        """Apply the extensions to a member whose header is complete, and check it."""
        if self._long_name is not None:
            member.name = self._long_name
        if self._long_link is not None:
            member.link = self._long_link
        if self._records:
            keys = {key for key, _ in self._records}
            if self._long_name is not None and keys & {b"path", b"GNU.sparse.name"}:
                raise FormatError(f"{quoted(member.name)} has both a GNU and a pax name")
            if self._long_link is not None and b"linkpath" in keys:
                raise FormatError(f"{quoted(member.name)} has both a GNU and a pax link target")
            if _apply(member, self._records):
                self._sparse_text = member
                self._gathered = []
                self._wanted = BLOCK
                _check_size(member)
                self._skipping_to = member.data_offset + _padded(member.data_size)
                return
        self._emit(member, members)

    def _sparse_text_block(self, payload: bytes, members: list[Member]) -> None:
        member = self._sparse_text
        assert member is not None
        found = text_map(payload)
        if found is None:
            if len(payload) >= _padded(member.data_size) or len(payload) > 42 * MAX_PIECES:
                raise FormatError("sparse map is not complete")
            self._gathered = [payload]
            self._wanted = min(max(BLOCK, len(payload)), _padded(member.data_size) - len(payload))
            return
        pieces, used = found
        self._sparse_text = None
        self._gathered = []
        member.data_offset += used
        member.data_size -= used
        if member.data_size < 0:
            raise FormatError("sparse map is longer than its member")
        member.sparse = tuple(pieces)
        self._emit(member, members)

    def _emit(self, member: Member, members: list[Member]) -> None:
        kind = member.kind
        if kind in _HEADER_ONLY:
            member.size = member.data_size = 0
            if kind in b"34" and not (0 <= member.major <= _MAX_MAJOR and 0 <= member.minor <= _MAX_MINOR):
                raise FormatError(f"{quoted(member.name)} has device number {member.major}:{member.minor}")
        elif kind in b"0\0":
            _check_size(member)
            if kind == b"\0":  # how v7 wrote files, and, with a slash at the end, directories
                member.kind = b"5" if member.name.endswith(b"/") and member.sparse is None else b"0"
                if member.kind == b"5" and member.data_size:
                    # Some readers take the data for what it is, others for further members.
                    raise FormatError(f"directory {quoted(member.name)} has {member.data_size} bytes of data")
            if member.sparse is not None:
                member.sparse = check_map(list(member.sparse), member.size, member.data_size)
        elif kind == b"V":
            _check_size(member)
            self._reset(member.data_offset + _padded(member.data_size))
            return
        else:
            raise UnsupportedFormat(f"{quoted(member.name)} is of type {quoted(kind)}, which no layer may contain")
        if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
            raise FormatError(
                f"{quoted(member.name)} is owned by {member.uid}:{member.gid}, outside 0..{MAX_ID}",
            )
        if not -_MAX_SIZE <= member.mtime <= _MAX_SIZE:
            raise FormatError(f"{quoted(member.name)} has the impossible time {member.mtime}")
        self._append(member, members)

    def _append(self, member: Member, members: list[Member]) -> None:
        """Hand a member out that is complete and checked; the next header lies behind its data."""
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise LimitExceeded(f"archive has more than {MAX_MEMBERS} members")
        members.append(member)
        self._reset(member.data_offset + _padded(member.data_size))
        # What pads it may be missing at the end of an archive: umoci writes it so.
        self._skipping_to = member.data_offset + member.data_size

    def _reset(self, following: int) -> None:
        self._next = self._skipping_to = following
        self._start = -1
        self._extension_bytes = 0
        self._records = []
        self._long_name = self._long_link = None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_size(member: Member) -> None:
    if not (0 <= member.data_size <= _MAX_SIZE and 0 <= member.size <= _MAX_SIZE):
        raise FormatError(f"{quoted(member.name)} has the impossible size {member.size}")


def _apply(member: Member, records: list[tuple[bytes, bytes]]) -> bool:
    """Let PAX records override the header; return whether a 1.0 sparse map leads the data."""
    values: dict[bytes, bytes] = {}
    xattrs: dict[bytes, bytes] = {}
    for key, value in records:
        if key.startswith(b"SCHILY.xattr."):
            xattrs[key[13:]] = value
        elif key.startswith(b"LIBARCHIVE.xattr."):
            name, decoded = _libarchive_xattr(key[17:], value)
            if name != b"security.capability":  # Go reads SCHILY only, so no other tool would see that a file has it
                xattrs.setdefault(name, decoded)
        else:
            values[key] = value
    member.xattrs = xattrs or None
    # An empty value takes back what another header set (POSIX): the member's own header holds.
    member.name = values.get(b"path") or member.name
    member.link = values.get(b"linkpath") or member.link
    for key in _PAX_NUMBERS:
        if text := values.get(key):
            if len(text) > 20 or not text.isdigit():
                raise FormatError(f"pax {key.decode()} is no number: {quoted(text, 40)}")
            setattr(member, "data_size" if key == b"size" else key.decode(), int(text))
    sparse_file = member.sparse is not None
    if values.get(b"size") and not sparse_file:
        member.size = member.data_size
    if text := values.get(b"mtime"):
        member.mtime, member.mtime_ns = parse_time(text, "mtime")
    if member.kind in b"0\0" and any(key.startswith(b"GNU.sparse.") for key in values):
        return _apply_sparse(member, records, values)
    return False


def _apply_sparse(member: Member, records: list[tuple[bytes, bytes]], values: dict[bytes, bytes]) -> bool:
    member.name = values.get(b"GNU.sparse.name", member.name)
    sizes = {values[key] for key in (b"GNU.sparse.realsize", b"GNU.sparse.size") if key in values}
    if len(sizes) > 1:
        raise FormatError(f"{quoted(member.name)} is sparse and has two sizes")
    size = next(iter(sizes), None)
    version = (values.get(b"GNU.sparse.major"), values.get(b"GNU.sparse.minor"))
    if version not in ((None, None), (b"1", b"0"), (b"0", b"0"), (b"0", b"1")):
        raise UnsupportedFormat(f"{quoted(member.name)} is sparse in format {version[0]!r}.{version[1]!r}")
    if size is None or len(size) > 20 or not size.isdigit():
        raise FormatError(f"{quoted(member.name)} is sparse without a size")
    member.size = int(size)
    if version == (b"1", b"0"):
        return True
    pieces = map_from_records(records)
    if pieces is None or (not pieces and version == (None, None)):  # which others take for no sparse file
        raise FormatError(f"{quoted(member.name)} is sparse without a map")
    member.sparse = tuple(pieces)
    return False


def _libarchive_xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Decode libarchive's spelling: the name URL-encoded, the value base64 without padding."""
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415 - few archives have such names, and all need a quick start

    try:
        return unquote_to_bytes(name), base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise FormatError(f"xattr {quoted(name, 80)} is no base64") from error
