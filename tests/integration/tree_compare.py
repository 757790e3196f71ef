"""Compares two directory trees in everything that a file system can say about an entry.

``describe`` walks one tree by descriptors and never follows a link; ``differences`` gives one readable line per
difference. Used to hold a mount of ours against the trees that other tools unpack.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath

__all__ = ["Entry", "describe", "differences", "implicit_directories"]

#: What the machine adds to every file by itself, whatever the image said.
_FOREIGN_XATTRS = frozenset({"security.selinux"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree; ``links`` are all names of the same inode, sorted, and only files have more than one."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    rdev: int
    target: bytes
    links: tuple[bytes, ...]
    xattrs: tuple[tuple[str, bytes], ...]
    sha256: str


_TYPES = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def describe(root: str | bytes | os.PathLike[str], *, contents: bool = True) -> dict[bytes, Entry]:
    """Describe every entry below ``root`` by its path, the root itself being ``b"."``.

    Args:
        root: the directory to walk; entries on other file systems are described, not entered.
        contents: whether files are read and digested.
    """
    described: dict[bytes, Entry] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    inodes: dict[bytes, tuple[int, int]] = {}
    digests: dict[tuple[int, int], str] = {}
    for path, parent, name in _walk(os.fsencode(root)):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        inode = (status.st_dev, status.st_ino)
        kind = stat.S_IFMT(status.st_mode)
        digest = ""
        if kind == stat.S_IFREG:
            names.setdefault(inode, []).append(path)
            inodes[path] = inode
            if contents:
                digest = digests.get(inode) or digests.setdefault(inode, _digest(parent, name))
        described[path] = Entry(
            type=_TYPES.get(kind, oct(kind)),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            size=status.st_size if kind in {stat.S_IFREG, stat.S_IFLNK} else 0,
            rdev=status.st_rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0,
            target=os.readlink(name, dir_fd=parent) if kind == stat.S_IFLNK else b"",
            links=(),
            xattrs=_xattrs(parent, name),
            sha256=digest,
        )
    for path, inode in inodes.items():
        group = tuple(sorted(names[inode]))
        if len(group) > 1:
            described[path] = replace(described[path], links=group)
    return described


def differences(
    left: dict[bytes, Entry], right: dict[bytes, Entry], *, ignore: Container[str] = (), most: int = 50
) -> list[str]:
    """Return one line per entry that differs, at most ``most`` and a count of the rest.

    Args:
        left: what is called "left" in the lines.
        right: what is called "right".
        ignore: names of fields of :class:`Entry` that may differ.
        most: lines to give in full.
    """
    lines = [f"only left: {_show(path)} ({left[path].type})" for path in sorted(left.keys() - right.keys())]
    lines += [f"only right: {_show(path)} ({right[path].type})" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        if left[path] == right[path]:
            continue
        changed = [
            f"{field.name} {_value(field.name, left[path])} != {_value(field.name, right[path])}"
            for field in fields(Entry)
            if field.name not in ignore and getattr(left[path], field.name) != getattr(right[path], field.name)
        ]
        if changed:
            lines.append(f"{_show(path)}: {'; '.join(changed)}")
    if len(lines) > most:
        lines[most:] = [f"... and {len(lines) - most} more"]
    return lines


def _walk(root: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (path, descriptor of its parent, name); the root comes first, as ``.`` in itself."""
    device = os.stat(root).st_dev
    # One open descriptor per level of the path at hand, whatever the number of entries.
    stack = [(b"", os.open(root, os.O_RDONLY | os.O_DIRECTORY))]
    pending: list[list[bytes]] = [_names(stack[-1][1])]
    try:
        yield b".", stack[0][1], b"."
        while stack:
            prefix, directory = stack[-1]
            if not pending[-1]:
                os.close(directory)
                stack.pop()
                pending.pop()
                continue
            name = pending[-1].pop()
            path = prefix + name
            yield path, directory, name
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                stack.append((path + b"/", inner))
                pending.append(_names(inner))
    finally:
        for _, directory in stack:
            os.close(directory)


def _names(directory: int) -> list[bytes]:
    return sorted((os.fsencode(name) for name in os.listdir(directory)), reverse=True)


def _digest(parent: int, name: bytes) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
    with open(descriptor, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(parent: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
    # The l*xattr calls take no directory descriptor; its name in /proc serves, and links at the end are not followed.
    path = os.fsencode(f"/proc/self/fd/{parent}/") + name
    found = os.listxattr(path, follow_symlinks=False)
    return tuple(
        (key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(found) if key not in _FOREIGN_XATTRS
    )


def _show(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _value(name: str, entry: Entry) -> str:
    value = getattr(entry, name)
    return oct(value) if name == "mode" else repr(value)


def implicit_directories(layers: Iterable[Path]) -> set[bytes]:
    """Return the directories that some layer tar writes into without having an entry for them."""
    found: set[bytes] = {b"."}
    for layer in layers:
        parents: set[str] = set()
        named: set[str] = set()
        with tarfile.open(layer, "r|*") as members:
            for member in members:
                path = PurePosixPath(member.name)
                named.add(str(path))
                parents.update(map(str, path.parents))
        found |= {os.fsencode(path) for path in parents - named}
    return found
