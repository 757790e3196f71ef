"""The outer form of image archives: a directory, a tar that can be read anywhere, or one that comes through a pipe.

Names inside are text with ``/``, without ``.``; anything that would leave the archive is refused. Links between members
are resolved inside the archive only, and never on the host: what a layout's symlinks mean ends at its directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from layerfs.errors import FormatError, LayerfsError, LimitExceeded, NotFound, UnsafePath
from layerfs.formats.document import MAX_DOCUMENT_SIZE
from layerfs.formats.tar.header import BLOCK, NUL_BLOCK, checksum_matches
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.linux.safe_path import open_in_root

__all__ = [
    "DirectoryMembers",
    "MemberReader",
    "Members",
    "OuterNames",
    "TarMembers",
    "check_archive",
    "chunks",
    "member_name",
    "read_document",
    "resolve_link",
    "stream_reader",
]

#: Links followed from one member to another; old docker archives have chains of one.
_MAX_LINKS = 8

#: Members of an outer archive: an image of 127 layers has some 400, an archive of many images a few thousand.
_MAX_OUTER_MEMBERS = 100_000

#: Bytes of all their names together, which are held in memory; real ones have some 80 each.
_MAX_OUTER_NAMES = 16 << 20


class MemberReader(Protocol):
    """A member being read from its start."""

    size: int

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, and nothing at the end."""

    def close(self) -> None:
        """Release what it holds."""


class Members(Protocol):
    """An archive whose members can be read by name, in any order."""

    def open(self, name: str) -> MemberReader:
        """Open a regular member.

        Raises:
            NotFound: there is none of that name.
            UnsafePath: the name leads out of the archive.
        """

    def has(self, name: str) -> bool:
        """Return whether :meth:`open` would find a regular member."""

    def close(self) -> None:
        """Release what it holds."""


class OuterNames:
    """The names of an outer archive's members so far: each may stand once, and all together are bounded."""

    def __init__(self) -> None:
        """Start without names."""
        self._seen: set[str] = set()
        self._size = 0

    def add(self, name: str) -> None:
        """Take the next name.

        Raises:
            FormatError: it stood before: readers disagree about which member is meant.
            LimitExceeded: there are too many, or they are too long.
        """
        if name in self._seen:
            raise FormatError(f"archive has two members called {name[:200]!r}")
        self._seen.add(name)
        self._size += len(name)
        if len(self._seen) > _MAX_OUTER_MEMBERS or self._size > _MAX_OUTER_NAMES:
            limit = f"{_MAX_OUTER_MEMBERS} members, or more than {_MAX_OUTER_NAMES} bytes of names"
            raise LimitExceeded(f"archive has more than {limit}")


def member_name(raw: bytes) -> str:
    """Return the one spelling of an outer member's name.

    Raises:
        UnsafePath: it is absolute in a way that leaves the archive, contains ``..`` or NUL, or is no UTF-8.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UnsafePath(f"archive member {raw[:200]!r} is no UTF-8") from error
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in text:
        raise UnsafePath(f"archive member {text[:200]!r} leaves the archive")
    return "/".join(parts)


def check_archive(head: bytes) -> None:
    """Refuse what is no tar by its first block, in words that fit somebody who named the wrong file.

    Args:
        head: the first 512 bytes, or all of them when there are fewer.

    Raises:
        FormatError: it is none.
    """
    if len(head) < BLOCK or not (head == NUL_BLOCK or checksum_matches(head)):
        raise FormatError(
            "not an image archive: no tar, and not compressed with gzip or zstd",
            hint="Give a file made by docker save, podman save or skopeo copy, or the directory of an OCI layout.",
        )


def resolve_link(name: str, target: bytes, *, hard: bool) -> str:
    """Return the member that a link in an archive means: hard links count from the root, symlinks from their place.

    Raises:
        UnsafePath: it leads out of the archive.
    """
    text = target.decode(errors="surrogateescape")
    if text.startswith("/") and not hard:
        raise UnsafePath(f"archive member {name!r} links to {text[:200]!r}, outside the archive")
    trail = [] if hard else name.split("/")[:-1]
    for part in text.split("/"):
        if part == "..":
            if not trail:
                raise UnsafePath(f"archive member {name!r} links to {text[:200]!r}, outside the archive")
            trail.pop()
        elif part not in ("", "."):
            trail.append(part)
    return "/".join(trail)


class _Range:
    """A member that lies in one piece in a file."""

    def __init__(self, fd: int, offset: int, size: int, name: str, *, owned: bool) -> None:
        self.size = size
        self._fd, self._position, self._end, self._name, self._owned = fd, offset, offset + size, name, owned

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, and nothing at the end."""
        wanted = min(size, self._end - self._position)
        if wanted <= 0:
            return b""
        data = os.pread(self._fd, wanted, self._position)
        if not data:
            raise FormatError(f"{self._name} is cut short by {self._end - self._position} bytes")
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the descriptor if it is this member's own."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DirectoryMembers:
    """An image layout (or an unpacked docker archive) in a directory."""

    def __init__(self, path: str) -> None:
        """Hold the directory open.

        Raises:
            OSError: as open.
        """
        self._path = path
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: str) -> MemberReader:
        """Open a regular file below the directory; see :class:`Members`."""
        try:
            # O_NONBLOCK: a fifo in the layout must not hang the load.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = open_in_root(self._root, member_name(name.encode()).encode(), flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound("file in the layout", os.path.join(self._path, name)) from error
        except OSError as error:
            kind = FormatError if error.errno in (errno.ELOOP, errno.ENAMETOOLONG) else LayerfsError
            raise kind(f"cannot read {name} in the layout: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise FormatError(f"{name} is no regular file")
        return _Range(fd, 0, status.st_size, name, owned=True)

    def has(self, name: str) -> bool:
        """Return whether there is such a regular file; see :class:`Members`.

        Raises:
            LayerfsError: it cannot be looked at: EACCES, EIO, EMFILE.
        """
        try:
            self.open(name).close()
        except (NotFound, FormatError):
            return False
        return True

    def close(self) -> None:
        """Close the directory."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


class TarMembers:
    """A plain tar file: its headers are read once, its members where they lie."""

    def __init__(self, fd: int) -> None:
        """Index the archive.

        Args:
            fd: a regular file, kept open by the caller; it is only ever read by offset.

        Raises:
            FormatError: no tar, damaged, or cut short.
        """
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._names = OuterNames()
        end = os.fstat(fd).st_size
        check_archive(os.pread(fd, BLOCK, 0))
        reader = TarReader()
        while not reader.ended:
            offset = reader.skip()
            block = os.pread(fd, BLOCK, offset)
            if not block:
                if offset > end:
                    raise FormatError("archive is truncated", where=f"tar@{end:#x}")
                reader.close()
                break
            for member in reader.feed(block):
                self._add(member)

    def open(self, name: str) -> MemberReader:
        """Open a member, through links; see :class:`Members`."""
        place = name
        for _ in range(_MAX_LINKS):
            if place in self._files:
                offset, size = self._files[place]
                return _Range(self._fd, offset, size, name, owned=False)
            if place not in self._links:
                raise NotFound("member of the archive", name)
            place = self._links[place]
        raise UnsafePath(f"archive member {name!r} is a loop of links")

    def has(self, name: str) -> bool:
        """Return whether there is such a regular member."""
        try:
            self.open(name)
        except (NotFound, UnsafePath):
            return False
        return True

    def close(self) -> None:
        """Do nothing: the caller owns the file."""

    def _add(self, member: Member) -> None:
        name = member_name(member.name)
        if not name or member.kind == b"5":
            return
        self._names.add(name)
        if member.kind == b"0":
            if member.sparse is not None:
                raise FormatError(f"archive member {name!r} is sparse")
            self._files[name] = (member.data_offset, member.size)
        elif member.kind in b"12":
            self._links[name] = resolve_link(name, member.link, hard=member.kind == b"1")


def stream_reader(file: BinaryIO) -> Callable[[int], bytes]:
    """Return a read function that waits for as much as was asked for, but for the end of the stream."""

    def read(size: int) -> bytes:
        data = file.read(size)
        if len(data) == size or not data:
            return data
        parts, missing = [data], size - len(data)
        while missing and (more := file.read(missing)):
            parts.append(more)
            missing -= len(more)
        return b"".join(parts)

    return read


def read_document(members: Members, name: str) -> bytes | None:
    """Return a small member, at most a byte more than documents may have; None if it is not there.

    Raises:
        FormatError, LayerfsError: as :meth:`Members.open`.
    """
    if not members.has(name):
        return None
    reader = members.open(name)
    try:
        parts, left = [], MAX_DOCUMENT_SIZE + 1
        while left and (data := reader.read(left)):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)
    finally:
        reader.close()


def chunks(reader: MemberReader, size: int) -> Iterator[bytes]:
    """Yield a member's bytes in pieces."""
    return iter(lambda: reader.read(size), b"")
