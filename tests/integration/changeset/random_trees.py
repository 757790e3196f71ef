"""Random file trees, as tars and as changes to a mounted directory."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from layerfs.formats.tar.member import Member
from layerfs.formats.tar.writer import END, encode_member, padding
from layerfs.linux.safe_path import remove_tree

__all__ = ["Thing", "Tree", "build", "reshape", "tar_of", "trees"]


@dataclass(frozen=True)
class Thing:
    """One inode; ``group`` other than 0 makes files with equal groups and equal fields one inode."""

    kind: str
    mode: int = 0o644
    uid: int = 0
    mtime_ns: int = 10**18
    content: bytes = b""
    target: bytes = b""
    rdev: int = 0
    xattr: bytes | None = None
    group: int = 0


#: Things by path, without the root; every path's parents are in it and are directories.
Tree = dict[tuple[bytes, ...], Thing]

_names = st.sampled_from([b"a", b"b", b"c", "ü".encode(), b"\xff", b"a-b"])
_times = st.sampled_from([10**18, 10**18 + 1, 123_456_789, 1_700_000_000_500_000_000])
_uids = st.sampled_from([0, 0, 1000, 3_000_000])
_marks = st.sampled_from([None, None, b"", b"one"])

_leaves = st.one_of(
    st.builds(
        Thing, st.just("file"), st.sampled_from([0o644, 0o4755]), _uids, _times,
        st.sampled_from([b"", b"x", b"y", b"x" * 5000, b"y" * 5000]), xattr=_marks, group=st.sampled_from([0, 0, 1, 2]),
    ),
    st.builds(Thing, st.just("symlink"), st.just(0o777), _uids, _times, target=st.sampled_from([b"a", b"/b/c"])),
    st.builds(Thing, st.just("fifo"), st.just(0o600), _uids, _times),
    st.builds(Thing, st.just("device"), st.just(0o600), _uids, _times, rdev=st.sampled_from([259, 65537])),
)  # fmt: skip
_directories = st.builds(Thing, st.just("directory"), st.sampled_from([0o755, 0o1777]), _uids, _times, xattr=_marks)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree: Tree = {}
    for _ in range(draw(st.integers(0, 12))):
        parents = [(), *(path for path, thing in tree.items() if thing.kind == "directory" and len(path) < 4)]
        path = (*draw(st.sampled_from(parents)), draw(_names))
        if path in tree:
            continue
        thing = draw(st.one_of(_leaves, _directories))
        if thing.group:
            # One inode has one set of attributes.
            thing = next((other for other in tree.values() if other.group == thing.group), thing)
        tree[path] = thing
    return tree


def tar_of(tree: Tree, root: Thing | None = None) -> bytes:
    """Return a tree as a tar that says everything of it, the root included."""
    top = root or Thing("directory", 0o755)
    parts = [_encoded((), top)]
    first: dict[int, tuple[bytes, ...]] = {}
    for path in sorted(tree):
        thing = tree[path]
        if thing.group and (earlier := first.setdefault(thing.group, path)) != path:
            member = _member(path, thing)
            member.kind, member.link, member.size, member.xattrs = b"1", b"/".join(earlier), 0, None
            parts.append(encode_member(member))
        else:
            parts.append(_encoded(path, thing))
    return b"".join(parts) + END


def _encoded(path: tuple[bytes, ...], thing: Thing) -> bytes:
    return encode_member(_member(path, thing)) + thing.content + padding(len(thing.content))


def _member(path: tuple[bytes, ...], thing: Thing) -> Member:
    kind = {"file": b"0", "symlink": b"2", "fifo": b"6", "device": b"3", "directory": b"5"}[thing.kind]
    seconds, rest = divmod(thing.mtime_ns, 10**9)
    xattrs = {b"user.mark": thing.xattr} if thing.xattr is not None else None
    name = b"/".join((b".", *path)) + (b"/" if kind == b"5" else b"")
    return Member(
        name, kind, thing.mode, thing.uid, thing.uid, seconds, rest, len(thing.content), thing.target,
        os.major(thing.rdev), os.minor(thing.rdev), xattrs, 0, 0, 0, None,
    )  # fmt: skip


def reshape(top: Path, old: Tree, new: Tree) -> None:
    """Make one tree of another in a directory, as programs do: what is the same stays, the rest is removed and made."""
    stays = {
        path
        for path in old
        if old[path] == new.get(path)
        and not old[path].group
        and all(new.get(path[:depth], Thing("")).kind == "directory" for depth in range(1, len(path)))
    }
    for path in sorted(old, key=len, reverse=True):
        keeps = path in stays or (old[path].kind == "directory" and new.get(path, Thing("")).kind == "directory")
        place = _place(top, path)
        if not keeps and os.path.lexists(place):
            remove_tree(place)
    first: dict[int, bytes] = {}
    for path in sorted(new):
        thing, place = new[path], _place(top, path)
        if path in stays:
            continue
        if thing.group and thing.group in first:
            os.link(first[thing.group], place, follow_symlinks=False)
            continue
        if not (thing.kind == "directory" and os.path.isdir(place)):
            build(place, thing)
        if thing.group:
            first[thing.group] = place
    for path in sorted(new, key=len, reverse=True):
        _dress(_place(top, path), new[path])
    os.utime(top, ns=(0, 10**18))


def build(place: bytes, thing: Thing) -> None:
    """Make one thing, without its attributes."""
    if thing.kind == "directory":
        os.mkdir(place)
    elif thing.kind == "file":
        with open(place, "xb") as file:
            file.write(thing.content)
    elif thing.kind == "symlink":
        os.symlink(thing.target, place)
    elif thing.kind == "fifo":
        os.mkfifo(place)
    else:
        os.mknod(place, stat.S_IFCHR | 0o600, thing.rdev)


def _dress(place: bytes, thing: Thing) -> None:
    status = os.lstat(place)
    if (status.st_uid, status.st_gid) != (thing.uid, thing.uid):
        os.chown(place, thing.uid, thing.uid, follow_symlinks=False)
    if thing.kind != "symlink" and stat.S_IMODE(os.lstat(place).st_mode) != thing.mode:
        os.chmod(place, thing.mode)
    if thing.kind in ("file", "directory"):
        if thing.xattr is None and "user.mark" in os.listxattr(place):
            os.removexattr(place, "user.mark")
        elif thing.xattr is not None and (
            "user.mark" not in os.listxattr(place) or os.getxattr(place, "user.mark") != thing.xattr
        ):
            os.setxattr(place, "user.mark", thing.xattr)
    if os.lstat(place).st_mtime_ns != thing.mtime_ns:
        os.utime(place, ns=(0, thing.mtime_ns), follow_symlinks=False)


def _place(top: Path, path: tuple[bytes, ...]) -> bytes:
    return b"/".join((os.fsencode(top), *path))
