"""Comparing two images by their merged trees, where it suffices to look at what some of their layers touch.

Two images that begin with the same layers can differ only where the other layers have something. So the trees of those
layers are read, they tell which paths to look at, and the shared layers are never touched: the cost is that of the
difference, however large what is shared. The rules are those of :mod:`layerfs.changeset.upper`; of two files that say
the same of themselves the bytes are compared too, unless both are the same bytes of the same layer.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT, ENOTDIR

from layerfs.changeset.change import ChangeKind, Step
from layerfs.changeset.entry import TreeEntry, attributes_of, same_content
from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Tree
from layerfs.formats.tree import MAX_SYMLINKS
from layerfs.formats.whiteout import IMPLICIT_XATTR, OPAQUE_XATTR, is_whiteout_device
from layerfs.store.view import ImageTree

__all__ = ["Touched", "touched_by", "walk_layer", "walk_tree", "walk_trees"]


@dataclass(slots=True)
class Touched:
    """What layers touch: names below a directory; ``whole`` when everything below may differ."""

    names: dict[bytes, Touched] = field(default_factory=dict)
    whole: bool = False

    def at(self, path: Iterable[bytes]) -> Touched:
        """Return the place of a path, made if it is new."""
        here = self
        for name in path:
            here = here.names.setdefault(name, Touched())
        return here


def touched_by(layers: Iterable[Tree], views: Iterable[ImageTree]) -> Touched:
    """Return which paths layers touch.

    Args:
        layers: their own trees.
        views: the merged trees in which the layers' paths are to be understood: one may run through a symlink.
    """
    top = Touched()
    merged = tuple(views)
    for layer in layers:
        stack: list[tuple[int, tuple[bytes, ...]]] = [(layer.root, ())]
        seen = set()
        while stack:
            nid, path = stack.pop()
            if (nid, path) in seen:
                continue  # two images may have symlinks that lead to each other's
            seen.add((nid, path))
            place = top.at(path)
            xattrs = layer.xattrs(nid)
            place.whole = place.whole or OPAQUE_XATTR in xattrs
            if path and IMPLICIT_XATTR in xattrs:
                for view in merged:
                    stack += [(nid, other) for other in _through_symlink(view, path)]
            for name, child, kind in layer.readdir(nid):
                if kind == DIRECTORY_TYPE:
                    stack.append((child, (*path, name)))
                else:
                    # A directory may have been there: whatever it had is gone.
                    place.names.setdefault(name, Touched()).whole = True
    return top


def _through_symlink(view: ImageTree, path: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    """Yield where a directory's path really leads in a merged tree, when that is elsewhere."""
    trail: list[bytes] = []
    nids, todo, links = [view.root], list(path[::-1]), 0
    try:
        while todo:
            name = todo.pop()
            if name == b"..":
                if trail:
                    trail.pop()
                    nids.pop()
                continue
            child = view.lookup(nids[-1], name)
            if child is None:
                return
            if stat.S_ISLNK(view.inode(child).mode):
                links += 1
                if links > MAX_SYMLINKS:
                    return
                target = view.readlink(child)
                if target.startswith(b"/"):
                    trail, nids = [], [view.root]
                todo += [part for part in target.split(b"/")[::-1] if part and part != b"."]
                continue
            trail.append(name)
            nids.append(child)
    except OSError as error:
        if error.errno not in (ENOTDIR, ENOENT, ELOOP):
            raise
        return
    if tuple(trail) != path:
        yield tuple(trail)


def walk_tree(tree: ImageTree) -> Iterator[Step]:
    """Yield everything in a tree as added."""
    yield Step(None, b"", None, TreeEntry(tree, tree.root))
    for path, child, _ in _sorted_walk(tree, tree.root):
        yield Step("A", path, None, TreeEntry(tree, child))


def walk_layer(tree: ImageTree) -> Iterator[Step]:
    """Yield what a layer's own tree does: entries as added, whiteouts as deleted, a directory it has no entry for not.

    A directory that hides all that was in it is ``opaque`` and counts as changed: nothing below a layer is known here,
    so it may be new. The root is only shown then.
    """
    root = tree.xattrs(tree.root)
    if OPAQUE_XATTR in root or IMPLICIT_XATTR not in root:
        opaque = OPAQUE_XATTR in root
        yield Step("C" if opaque else None, b"", None, TreeEntry(tree, tree.root), opaque, IMPLICIT_XATTR in root)
    for path, child, _ in _sorted_walk(tree, tree.root):
        entry = TreeEntry(tree, child)
        if is_whiteout_device(entry.mode, entry.rdev):
            yield Step("D", path, entry, None)
            continue
        xattrs = tree.xattrs(child)
        opaque = OPAQUE_XATTR in xattrs
        if opaque or IMPLICIT_XATTR not in xattrs:
            yield Step("C" if opaque else "A", path, None, entry, opaque, IMPLICIT_XATTR in xattrs)


def walk_trees(
    old: ImageTree, new: ImageTree, touched: Touched | None = None, *, exact: bool = False
) -> Iterator[Step]:
    """Yield what differs between two images, in the order of :func:`layerfs.changeset.upper.walk_upper`.

    Args:
        old: the state before.
        new: the state after.
        touched: where they may differ; None compares everything.
        exact: also yield what a layer has to repeat to make the one tree of the other, see :class:`Step`.
    """
    linked = _regrouped(old, new, touched) if exact else frozenset()
    yield from _TreeWalk(old, new, exact=exact, linked=linked).run(touched)


def _regrouped(old: ImageTree, new: ImageTree, touched: Touched | None) -> frozenset[int]:
    """Return the inodes with several names in the new tree that had other names before, or are another file.

    A layer that has one of their names has to have all of them: its links can only lead to what it has itself. Names
    that no layer touches are added to what is touched.
    """
    groups: dict[int, list[bytes]] = {}
    for path, nid in _touched_files(new, touched):
        if new.inode(nid).nlink > 1:
            groups.setdefault(nid, []).append(path)
    if touched is not None and any(new.inode(nid).nlink != len(paths) for nid, paths in groups.items()):
        for paths in groups.values():
            paths.clear()
        for path, nid, _ in _sorted_walk(new, new.root):
            if nid in groups:
                groups[nid].append(path)
    changed = set()
    for nid, paths in groups.items():
        before = {_find(old, path) for path in paths}
        only = before.pop() if len(before) == 1 else None
        if only is not None and old.inode(only).nlink == len(paths):
            one, other = TreeEntry(old, only), TreeEntry(new, nid)
            if attributes_of(one) == attributes_of(other) and one.xattrs() == other.xattrs():
                continue  # when its bytes differ, they do so under every name
        changed.add(nid)
        if touched is not None:
            for path in paths:
                touched.at(path.split(b"/")[1:])
    return frozenset(changed)


def _find(tree: ImageTree, path: bytes) -> int | None:
    """Return the inode at a path without following any link, or None."""
    nid: int | None = tree.root
    for name in path.split(b"/")[1:]:
        if nid is None or not stat.S_ISDIR(tree.inode(nid).mode):
            return None
        nid = tree.lookup(nid, name)
    return nid


def _touched_files(tree: ImageTree, touched: Touched | None) -> Iterator[tuple[bytes, int]]:
    """Yield the files at touched paths."""
    stack: list[tuple[bytes, int, Touched | None]] = [(b"", tree.root, touched)]
    while stack:
        prefix, directory, place = stack.pop()
        everything = place is None or place.whole
        for name, child, kind in tree.readdir(directory):
            below = place.names.get(name) if place is not None else None
            if below is None and not everything:
                continue
            if kind == DIRECTORY_TYPE:
                stack.append((prefix + b"/" + name, child, None if everything else below))
            else:
                yield prefix + b"/" + name, child


def _sorted_walk(tree: ImageTree, top: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (path, inode number, file type) of all below a directory, each directory followed by what is in it."""
    stack = [(b"", iter(tree.readdir(top)))]
    while stack:
        prefix, entries = stack[-1]
        found = next(entries, None)
        if found is None:
            stack.pop()
            continue
        name, nid, kind = found
        path = prefix + b"/" + name
        yield path, nid, kind
        if kind == DIRECTORY_TYPE:
            stack.append((path, iter(tree.readdir(nid))))


@dataclass(slots=True)
class _Frame:
    """A directory under way: where it is in both trees, and the step that is told when something below differs."""

    path: bytes
    names: Iterator[bytes]
    old: int | None
    new: int | None
    place: Touched | None
    step: Step | None


class _TreeWalk:
    """One run of :func:`walk_trees`."""

    def __init__(self, old: ImageTree, new: ImageTree, *, exact: bool, linked: frozenset[int]) -> None:
        self._old = old
        self._new = new
        self._exact = exact
        self._linked = linked
        self._frames: list[_Frame] = []

    def run(self, touched: Touched | None) -> Iterator[Step]:
        """Walk both trees."""
        old, new = TreeEntry(self._old, self._old.root), TreeEntry(self._new, self._new.root)
        if attributes_of(old) != attributes_of(new) or old.xattrs() != new.xattrs():
            yield Step("C", b"", old, new)
        elif self._exact and attributes_of(old, time=True) != attributes_of(new, time=True):
            yield Step(None, b"", old, new)
        self._push(b"", self._old.root, self._new.root, touched, None)
        while self._frames:
            frame = self._frames[-1]
            name = next(frame.names, None)
            if name is None:
                self._frames.pop()
            else:
                yield from self._visit(frame, name)

    def _push(self, path: bytes, old: int | None, new: int | None, place: Touched | None, step: Step | None) -> None:
        names: set[bytes] = set()
        if place is not None and not place.whole:
            names.update(place.names)
        else:
            for tree, nid in ((self._old, old), (self._new, new)):
                if nid is not None:
                    names.update(name for name, _, _ in tree.readdir(nid))
        self._frames.append(_Frame(path, iter(sorted(names)), old, new, place, step))

    def _visit(self, frame: _Frame, name: bytes) -> Iterator[Step]:
        before = None if frame.old is None else self._old.lookup(frame.old, name)
        after = None if frame.new is None else self._new.lookup(frame.new, name)
        path = frame.path + b"/" + name
        if after is None:
            if before is not None:
                yield from self._announce(Step("D", path, TreeEntry(self._old, before), None))
            return
        new = TreeEntry(self._new, after)
        old = None if before is None else TreeEntry(self._old, before)
        place = frame.place
        if place is not None:
            place = None if place.whole else place.names.get(name)
        if not stat.S_ISDIR(new.mode):
            kind, differs = self._file_differs(old, new)
            if differs:
                yield from self._announce(Step(kind, path, old, new))
            return
        was_directory = old is not None and stat.S_ISDIR(old.mode)
        kind = None
        if old is None:
            kind = "A"
        elif attributes_of(old, time=True) != attributes_of(new, time=True) or old.xattrs() != new.xattrs():
            kind = "C"
        step: Step | None = Step(kind or "C", path, old, new)
        if kind is not None:
            assert step is not None
            yield from self._announce(step)
            step = None
        below = place if was_directory else None
        self._push(path, before if was_directory else None, after, below, step)

    def _file_differs(self, old: TreeEntry | None, new: TreeEntry) -> tuple[ChangeKind | None, bool]:
        """Return what to say of a path that is no directory now, and whether to say anything."""
        if old is None:
            return "A", True
        if attributes_of(old) != attributes_of(new) or old.xattrs() != new.xattrs():
            return "C", True
        if not same_content(old, new):
            return "C", True
        return None, self._exact and (new.nid in self._linked or old.links > new.links == 1)

    def _announce(self, step: Step) -> Iterator[Step]:
        """Yield a step, and before it the directories above that were not told yet."""
        for frame in self._frames:
            if frame.step is not None:
                above, frame.step = frame.step, None
                yield above
        yield step
