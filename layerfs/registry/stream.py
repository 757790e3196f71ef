"""An image archive that comes through a pipe: its members in the order they have, each looked at once.

Layers are recognised by their bytes, since the document that names them may come last: whatever is gzip, zstd or tar is
read as a layer, small JSON is kept as a document, links are noted, and the rest is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layerfs.errors import FormatError, LimitExceeded, UnsupportedFormat
from layerfs.formats.codec import PIECE, decompress, detect, rejoined
from layerfs.formats.digest import Digest
from layerfs.formats.document import MAX_DOCUMENT_SIZE
from layerfs.formats.tar.header import BLOCK, NUL_BLOCK, checksum_matches
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.registry.members import OuterNames, check_archive, member_name, resolve_link
from layerfs.registry.pipeline import DigestBacklog, LayerEvent, read_blob
from layerfs.registry.plan import TOP_DOCUMENTS

__all__ = ["ArchiveDocument", "ArchiveLink", "KnownLayer", "StreamEvent", "read_stream"]

#: Bytes of all documents of one archive together: they are held in memory until the archive's end.
_MAX_DOCUMENTS = 32 << 20

#: Bytes read behind the end of an archive; tar pads to 10 KiB, dd and tapes to a few MiB.
_MAX_PADDING = 64 << 20

_BLOB_NAME = re.compile(r"blobs/(sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})")


@dataclass(frozen=True, slots=True)
class ArchiveDocument:
    """A member that may be a JSON document."""

    member: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class ArchiveLink:
    """A member that stands for another one."""

    member: str
    target: str


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """A layer that was passed over because the store has what its digest names."""

    member: str
    blob: Digest
    size: int


StreamEvent = LayerEvent | ArchiveDocument | ArchiveLink | KnownLayer


class _Outer:
    """The outer tar's bytes, with a position, from a possibly compressed stream."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        head = read(PIECE)
        if not head:
            raise FormatError("the archive is empty")
        self._pieces = decompress(rejoined(head, read), detect(head))
        self._buffer = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, and nothing at the end."""
        if self._at == len(self._buffer):
            self._buffer, self._at = next(self._pieces, b""), 0
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end of the stream."""
        parts = []
        while size and (data := self.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


class _Body:
    """One member's data inside the outer tar; must be read to its end before the next header."""

    def __init__(self, outer: _Outer, member: Member, name: str) -> None:
        self._outer = outer
        self._left = member.data_size
        self._padding = -member.data_size % BLOCK
        self._name = name

    def read(self, size: int) -> bytes:
        data = self._outer.read(min(size, self._left))
        if not data and self._left:
            raise FormatError(f"archive is truncated: {self._left} bytes of {self._name} are missing")
        self._left -= len(data)
        return data

    def head(self, size: int) -> bytes:
        """Return the first bytes, as many as there are up to ``size``."""
        data = self._outer.exactly(min(size, self._left))
        if len(data) < min(size, self._left):
            raise FormatError(f"archive is truncated: {self._left} bytes of {self._name} are missing")
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Read the rest and the padding."""
        while self._left:
            self.read(PIECE)
        if len(self._outer.exactly(self._padding)) < self._padding:
            raise FormatError(f"archive is truncated behind {self._name}")


def read_stream(
    read: Callable[[int], bytes],
    is_known: Callable[[Digest], bool],
    backlog: DigestBacklog,
    keep: Callable[[str], Callable[[bytes], object]] | None = None,
) -> Iterator[StreamEvent]:
    """Yield everything of an archive that matters, in its order.

    Args:
        read: returns up to that many bytes of the archive, which may be compressed as a whole.
        is_known: tells whether the store already has, whole, the layer that a blob of this digest is.
        backlog: where digesting may be left to the consumer.
        keep: as for :func:`~layerfs.registry.pipeline.read_blob`.

    Raises:
        FormatError: no archive, or damaged beyond one layer.
    """
    outer = _Outer(read)
    reader = TarReader()
    names = OuterNames()
    documents = 0
    while not reader.ended:
        block = outer.exactly(BLOCK)
        if not reader.position:
            check_archive(block)
        if not block:
            break
        for member in reader.feed(block):
            name = member_name(member.name)
            if not name or member.kind == b"5":
                continue
            names.add(name)
            if member.kind in b"12":
                yield ArchiveLink(name, resolve_link(name, member.link, hard=member.kind == b"1"))
            elif member.kind == b"0":
                body = _Body(outer, member, name)
                for event in _member(name, member, body, is_known, backlog, keep):
                    if isinstance(event, ArchiveDocument):
                        documents += len(event.raw)
                        if documents > _MAX_DOCUMENTS:
                            raise LimitExceeded(f"archive has more than {_MAX_DOCUMENTS} bytes of documents")
                    yield event
                body.skip()
                reader.skip()
    reader.close()
    # A writer in front of the pipe should not be killed while it pads; what pads for ever is no archive's end.
    padding = 0
    while padding < _MAX_PADDING and (piece := outer.read(PIECE)):
        padding += len(piece)


def _member(
    name: str,
    member: Member,
    body: _Body,
    is_known: Callable[[Digest], bool],
    backlog: DigestBacklog,
    keep: Callable[[str], Callable[[bytes], object]] | None,
) -> Iterator[StreamEvent]:
    if member.sparse is not None:
        raise FormatError(f"archive member {name!r} is sparse")
    named = _BLOB_NAME.fullmatch(name)
    digest = Digest(*named[1].split("/")) if named else None
    head = body.head(BLOCK)
    if not _is_layer(head):
        if member.size <= MAX_DOCUMENT_SIZE:
            yield ArchiveDocument(name, head + body.head(member.size))
        elif name in TOP_DOCUMENTS:
            raise LimitExceeded(f"{name} has {member.size} bytes, more than {MAX_DOCUMENT_SIZE}")
        return
    if digest is not None and is_known(digest):
        yield KnownLayer(name, digest, member.size)
        return
    algorithm = digest.algorithm if digest is not None else "sha256"
    yield from read_blob(name, member.size, body.read, blob_algorithm=algorithm, head=head, backlog=backlog, keep=keep)


def _is_layer(head: bytes) -> bool:
    """Return whether these first bytes are of something that layers are written as."""
    try:
        if detect(head) != "none":
            return True
    except UnsupportedFormat:
        return True  # so that the error names it, if it turns out to be a layer
    return len(head) == BLOCK and (head == NUL_BLOCK or checksum_matches(head))
