"""Writes a changeset as an OCI layer, or a whole tree as a tar: always the same bytes for the same change.

Entries stand in the order of the steps: a directory before what is in it, names in order of their bytes. A file with
several names is written under the first and linked from the others. Nothing that differs between days and machines gets
in: no user names, no times of access, whiteouts of time 0, and no time after a limit that the caller may set.

Left out are sockets, which no tar can hold, and xattrs that a mount would read as commands.

Source: OCI image-spec v1.1 layer.md, "Change Types" and "Representing Changes".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator

from layerfs.changeset.change import Step
from layerfs.changeset.entry import Entry
from layerfs.errors import Conflict, UnsafePath
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.writer import END, clamp_time, encode_member, padding
from layerfs.formats.whiteout import OPAQUE_MARKER, WHITEOUT_PREFIX, is_private_xattr

__all__ = ["whiteout_name", "write_layer"]

#: Small members are gathered to pieces of this size before they are handed on.
_PIECE = 1 << 18

_KINDS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


def write_layer(
    steps: Iterable[Step],
    *,
    plain: bool = False,
    latest: int | None = None,
    check: Callable[[], None] | None = None,
) -> Iterator[bytes]:
    """Yield the tar of a changeset in pieces, none empty.

    Args:
        steps: the changes; each is looked at before the next one is taken.
        plain: whether this is no layer but a tree, in which names that are whiteouts in layers mean nothing.
        latest: seconds since the epoch that no time may exceed, as SOURCE_DATE_EPOCH asks for; None for no limit.
        check: called once per step.

    Returns:
        The pieces. A changeset without steps is a tar without members.

    Raises:
        Conflict: a file became shorter or longer while it was read.
        UnsafePath: a name that would be a whiteout in a layer.
        OSError: what reading raises.
    """
    gathered: list[bytes] = []
    size = 0
    for piece in _members(steps, latest, check, plain=plain):
        if len(piece) >= _PIECE:
            if gathered:
                yield b"".join(gathered)
                gathered, size = [], 0
            yield piece
            continue
        gathered.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join((*gathered, END))


def whiteout_name(path: bytes) -> UnsafePath:
    """Return the error for a file whose name would be a whiteout in a layer."""
    return UnsafePath(
        f"{os.fsdecode(path)} cannot be in a layer: its name means that something is removed", hint="Rename it first."
    )


def _members(
    steps: Iterable[Step], latest: int | None, check: Callable[[], None] | None, *, plain: bool
) -> Iterator[bytes]:
    first: dict[object, bytes] = {}
    for step in steps:
        if check is not None:
            check()
        path = step.path[1:]
        if step.new is None:
            parent, slash, leaf = path.rpartition(b"/")
            yield _whiteout(parent + slash + WHITEOUT_PREFIX + leaf)
            continue
        if step.bare:
            yield _opaque(path)
            continue
        kind = _KINDS.get(stat.S_IFMT(step.new.mode))
        if kind is None:
            continue
        if not plain and path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX):
            raise whiteout_name(step.path)
        member = _member(path or b".", kind, step.new)
        clamp_time(member, latest)
        if kind != b"5" and step.new.links > 1:
            earlier = first.setdefault(step.new.identity, path)
            if earlier != path:
                member.kind, member.link, member.size, member.xattrs = b"1", earlier, 0, None
                yield encode_member(member)
                continue
        yield encode_member(member)
        if kind == b"0":
            yield from _content(step.new, step.path)
        if step.opaque:
            yield _opaque(path)


def _member(path: bytes, kind: bytes, entry: Entry) -> Member:
    device = kind in b"34"
    return Member(
        path + b"/" if kind == b"5" else path, kind, stat.S_IMODE(entry.mode), entry.uid, entry.gid, entry.mtime,
        entry.mtime_ns, entry.size if kind == b"0" else 0, entry.target() if kind == b"2" else b"",
        os.major(entry.rdev) if device else 0, os.minor(entry.rdev) if device else 0,
        {name: value for name, value in entry.xattrs().items() if not is_private_xattr(name)} or None, 0, 0, 0, None,
    )  # fmt: skip


def _whiteout(path: bytes) -> bytes:
    return encode_member(Member(path, b"0", 0, 0, 0, 0, 0, 0, b"", 0, 0, None, 0, 0, 0, None))


def _opaque(directory: bytes) -> bytes:
    return _whiteout(directory + b"/" + OPAQUE_MARKER if directory else OPAQUE_MARKER)


def _content(entry: Entry, path: bytes) -> Iterator[bytes]:
    left = entry.size
    if left:
        for piece in entry.pieces():
            left -= len(piece)
            if left < 0:
                break
            yield piece
    if left:
        raise Conflict(
            f"{os.fsdecode(path)} was written to while it was read", reason="changed",
            hint="Stop what writes to it, or unmount the container first.",
        )  # fmt: skip
    yield padding(entry.size)
