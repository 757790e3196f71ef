"""What differs at one path, said in detail: metadata, sizes, lines of text."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from layerfs.changeset.change import Step
from layerfs.changeset.entry import ContentTree, Entry, TreeEntry, same_content

__all__ = ["DirectoryStat", "metadata", "metadata_changes", "summarize", "text_diff", "total"]

#: Files of more bytes or lines are named, not compared: the time of that grows with the square of their lines.
_MAX_TEXT = 1 << 20
_MAX_LINES = 20_000

#: What git quotes in paths: control characters, quotes and backslashes.
_UNSAFE = re.compile(rb'[\x00-\x1f\x7f"\\]')
_ESCAPES = {b"\n": b"\\n", b"\t": b"\\t", b"\r": b"\\r", b'"': b'\\"', b"\\": b"\\\\"}

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(slots=True)
class DirectoryStat:
    """What changed directly in one directory: entries by kind, bytes of regular files that came and went."""

    path: bytes
    added: int = 0
    changed: int = 0
    deleted: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def count(self, step: Step) -> None:
        """Take one step, of an entry of this directory."""
        if step.kind == "A":
            self.added += 1
        elif step.kind == "C":
            self.changed += 1
        else:
            self.deleted += 1
        if step.new is not None and stat.S_ISREG(step.new.mode):
            self.bytes_in += step.new.size
        if step.old is not None:
            self.bytes_out += _bytes_of(step.old) if step.new is None or not _is_directory(step.new) else 0


def summarize(steps: Iterator[Step]) -> list[DirectoryStat]:
    """Return what changed per directory, in order of paths.

    A directory that changed only in what it holds, and so in its time, counts nowhere itself.
    """
    found: dict[bytes, DirectoryStat] = {}
    for step in steps:
        if step.kind is None:
            continue
        if step.old is not None and step.new is not None and _is_directory(step.old) and _is_directory(step.new):
            differing = {row[0] for row in metadata_changes(step)}
            if differing <= {"mtime"}:
                continue  # only on the way to a change
        directory = step.path.rpartition(b"/")[0] or b"/"
        found.setdefault(directory, DirectoryStat(directory)).count(step)
    return sorted(found.values(), key=lambda row: row.path.split(b"/"))


def total(rows: list[DirectoryStat]) -> DirectoryStat:
    """Return the sum of rows."""
    found = DirectoryStat(b"/")
    for row in rows:
        found.added += row.added
        found.changed += row.changed
        found.deleted += row.deleted
        found.bytes_in += row.bytes_in
        found.bytes_out += row.bytes_out
    return found


def metadata(entry: Entry) -> dict[str, Any]:
    """Return the attributes of a path by name; times as (seconds, nanoseconds), xattrs with their values."""
    found: dict[str, Any] = {
        "type": _TYPES.get(stat.S_IFMT(entry.mode), "unknown"),
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "owner": f"{entry.uid}:{entry.gid}",
        "mtime": (entry.mtime, entry.mtime_ns),
    }
    if stat.S_ISREG(entry.mode):
        found["size"] = entry.size
    if stat.S_ISLNK(entry.mode):
        found["target"] = entry.target()
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        found["device"] = f"{os.major(entry.rdev)}:{os.minor(entry.rdev)}"
    for name, value in sorted(entry.xattrs().items()):
        found[f"xattr {os.fsdecode(name)}"] = value
    return found


def metadata_changes(step: Step) -> list[tuple[str, Any, Any]]:
    """Return (what, before, after) for each attribute that differs; None stands for what one side lacks."""
    old = metadata(step.old) if step.old is not None else {}
    new = metadata(step.new) if step.new is not None else {}
    found = [(key, old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]]
    return [row for row in found if row[1] != row[2]]


def text_diff(step: Step) -> Iterator[bytes]:
    """Yield lines (with their ends) of a unified diff of a file, or of a symlink's target, as git has them.

    Binary and large files are only named. A directory of an image that is gone, or no directory any more, yields those
    of all files that went with it.
    """
    if step.old is not None and _is_directory(step.old) and (step.new is None or not _is_directory(step.new)):
        for below, entry in _files_below(step.old, step.path):
            yield from _file_diff(below, entry, None)
    yield from _file_diff(step.path, step.old, step.new)


def _file_diff(path: bytes, old: Entry | None, new: Entry | None) -> Iterator[bytes]:
    old = old if old is not None and _has_text(old) else None
    new = new if new is not None and _has_text(new) else None
    if old is None and new is None:
        return
    if old is not None and new is not None and stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield from _file_diff(path, old, None)
        yield from _file_diff(path, None, new)
        return
    names = (
        _quoted(b"a" + path) if old is not None else b"/dev/null",
        _quoted(b"b" + path) if new is not None else b"/dev/null",
    )
    both = b" and ".join(names)
    if old is not None and new is not None and old.size == new.size and same_content(old, new):
        yield b"Files " + both + b" are equal\n"
        return
    if max(side.size for side in (old, new) if side is not None) > _MAX_TEXT:
        yield b"Large files " + both + b" differ\n"
        return
    sides = [_text_of(side) for side in (old, new)]
    if any(b"\0" in side for side in sides):
        yield b"Binary files " + both + b" differ\n"
        return
    # Not splitlines(), for which a carriage return ends a line too.
    lines = [[line + b"\n" for line in side.split(b"\n")] for side in sides]
    for side in lines:
        last = side.pop()[:-1]
        if last:
            side.append(last)
    if max(map(len, lines)) > _MAX_LINES:
        yield b"Large files " + both + b" differ\n"
        return
    for line in difflib.diff_bytes(difflib.unified_diff, lines[0], lines[1], *names):
        yield line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"


def _has_text(entry: Entry) -> bool:
    return stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode)


def _text_of(entry: Entry | None) -> bytes:
    if entry is None:
        return b""
    return entry.target() if stat.S_ISLNK(entry.mode) else b"".join(entry.pieces())


def _quoted(path: bytes) -> bytes:
    """Return a path as it stands in a diff: in quotes, with escapes, if it could be taken for more than a path."""
    if not _UNSAFE.search(path):
        return path
    return b'"' + _UNSAFE.sub(lambda match: _ESCAPES.get(match[0], b"\\%03o" % match[0][0]), path) + b'"'


def _is_directory(entry: Entry) -> bool:
    return stat.S_ISDIR(entry.mode)


def _bytes_of(entry: Entry) -> int:
    """Return the bytes of a file, or of all files below a directory of an image."""
    if stat.S_ISREG(entry.mode):
        return entry.size
    if not _is_directory(entry):
        return 0
    return sum(file.size for _, file in _files_below(entry, b"") if stat.S_ISREG(file.mode))


def _files_below(directory: Entry, path: bytes) -> Iterator[tuple[bytes, TreeEntry]]:
    """Yield path and entry of every file and symlink below a directory of an image, in byte order of its names."""
    if not isinstance(directory, TreeEntry):
        return
    tree: ContentTree = directory.tree
    todo = [(path, directory.nid)]
    while todo:
        prefix, nid = todo.pop()
        below = []
        for name, child, _ in tree.readdir(nid):
            entry = TreeEntry(tree, child)
            if _is_directory(entry):
                below.append((prefix + b"/" + name, child))
            elif _has_text(entry):
                yield prefix + b"/" + name, entry
        todo += reversed(below)
