"""What differs at one path, said in detail: metadata, sizes, lines of text."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from layerfs.changeset.change import Step
from layerfs.changeset.entry import ContentTree, Entry, TreeEntry, same_content

__all__ = ["DirectoryStat", "metadata", "metadata_changes", "summarize", "text_diff", "total"]

#: Files of more bytes are named, not compared line by line: the time of that grows with the square of their lines.
MAX_TEXT = 1 << 20

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


@dataclass(slots=True)
class _Rows:
    rows: dict[bytes, DirectoryStat] = field(default_factory=dict)

    def at(self, path: bytes) -> DirectoryStat:
        return self.rows.setdefault(path, DirectoryStat(path))


def summarize(steps: Iterator[Step]) -> list[DirectoryStat]:
    """Return what changed per directory, in order of paths; a directory whose content changed counts nowhere itself."""
    found = _Rows()
    for step in steps:
        if step.kind is None:
            continue
        both_directories = step.old is not None and step.new is not None and _is_directory(step.old)
        if both_directories and step.new is not None and _is_directory(step.new) and not metadata_changes(step):
            continue  # only on the way to a change
        found.at(step.path.rpartition(b"/")[0] or b"/").count(step)
    return sorted(found.rows.values(), key=lambda row: row.path.split(b"/"))


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
    """Return (what, before, after) for each attribute that differs; None stands for what one side lacks.

    The time of a directory counts only together with something else: it changes with whatever is in it.
    """
    old = metadata(step.old) if step.old is not None else {}
    new = metadata(step.new) if step.new is not None else {}
    found = [(key, old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]]
    differing = [row for row in found if row[1] != row[2]]
    if [row[0] for row in differing] == ["mtime"] and old["type"] == "directory":
        return []
    return differing


def text_diff(step: Step) -> Iterator[bytes]:
    """Yield lines (with their ends) of a unified diff of a regular file; binary and large ones are only named.

    A directory of an image that is gone, or no directory any more, yields those of all files that went with it.
    """
    if step.old is not None and _is_directory(step.old) and (step.new is None or not _is_directory(step.new)):
        for below, entry in _files_below(step.old, step.path):
            yield from _file_diff(below, entry, None)
    yield from _file_diff(step.path, step.old, step.new)


def _file_diff(path: bytes, old: Entry | None, new: Entry | None) -> Iterator[bytes]:
    old = old if old is not None and stat.S_ISREG(old.mode) else None
    new = new if new is not None and stat.S_ISREG(new.mode) else None
    if old is None and new is None:
        return
    if old is not None and new is not None and old.size == new.size and same_content(old, new):
        yield b"Files a" + path + b" and b" + path + b" are equal\n"
        return
    if max(side.size for side in (old, new) if side is not None) > MAX_TEXT:
        yield b"Large files a" + path + b" and b" + path + b" differ\n"
        return
    sides = [b"".join(side.pieces()) if side is not None else b"" for side in (old, new)]
    if any(b"\0" in side for side in sides):
        yield b"Binary files a" + path + b" and b" + path + b" differ\n"
        return
    names = (b"a" + path if old is not None else b"/dev/null", b"b" + path if new is not None else b"/dev/null")
    lines = difflib.diff_bytes(
        difflib.unified_diff, sides[0].splitlines(keepends=True), sides[1].splitlines(keepends=True), *names
    )
    for line in lines:
        yield line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"


def _is_directory(entry: Entry) -> bool:
    return stat.S_ISDIR(entry.mode)


def _bytes_of(entry: Entry) -> int:
    """Return the bytes of a file, or of all files below a directory of an image."""
    if stat.S_ISREG(entry.mode):
        return entry.size
    return sum(file.size for _, file in _files_below(entry, b"")) if _is_directory(entry) else 0


def _files_below(directory: Entry, path: bytes) -> Iterator[tuple[bytes, TreeEntry]]:
    """Yield path and entry of every regular file below a directory of an image, in byte order of its names."""
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
            elif stat.S_ISREG(entry.mode):
                yield prefix + b"/" + name, entry
        todo += reversed(below)
