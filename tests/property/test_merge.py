"""Stacked layers against a model that knows nothing of trees: a dictionary from path to entry."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import FormatError
from layerfs.formats.merge import apply_layer, empty_tree
from layerfs.formats.tree import Node
from tests.unit.formats.raw_tar import END, header, layer

Path = tuple[bytes, ...]


@dataclass(frozen=True)
class Entry:
    """What stands in a tar: ``number`` marks it, as its owner."""

    path: Path
    kind: str  # file, dir, link, whiteout, opaque
    number: int = 0
    target: Path = ()

    def block(self) -> bytes:
        name = b"/".join(self.path)
        match self.kind:
            case "whiteout":
                return header(b"/".join((*self.path[:-1], b".wh." + self.path[-1])))
            case "opaque":
                return header(b"/".join((*self.path, b".wh..wh..opq")))
            case "link":
                return header(name, b"1", link=b"/".join(self.target), uid=self.number)
            case "dir":
                return header(name or b".", b"5", uid=self.number)
        return header(name, b"0", uid=self.number)


@dataclass(frozen=True)
class Thing:
    """What the merged view has at a path."""

    directory: bool
    number: int
    implicit: bool = False
    opaque: bool = False


View = dict[Path, Thing]

#: A hard link to nothing; only one that no later entry replaces is an error.
BROKEN = Thing(directory=False, number=-1)


class Refused(Exception):
    """The layer contradicts itself."""


def drop(view: View, path: Path, *, itself: bool) -> None:
    for other in [other for other in view if other[: len(path)] == path and (itself or other != path)]:
        del view[other]


def own_view(entries: list[Entry], lower: View) -> View:
    """Return what one layer has itself: entries in order, the last one wins."""
    own: View = {(): Thing(directory=True, number=0, implicit=True)}
    for entry in entries:
        path = entry.path
        parents = path if entry.kind == "opaque" else path[:-1]
        for depth in range(1, len(parents) + 1):
            parent = own.setdefault(parents[:depth], Thing(directory=True, number=0, implicit=True))
            if not parent.directory:
                raise Refused
        there = own.get(path)
        if entry.kind == "dir":
            keep = there is not None and there.directory
            own[path] = Thing(
                directory=True, number=entry.number, opaque=there is not None and (not keep or there.opaque)
            )
        elif entry.kind == "link":
            for depth in range(1, len(entry.target)):
                if not own.get(entry.target[:depth], Thing(directory=True, number=0)).directory:
                    raise Refused
            found = own.get(entry.target)
            if found is None:
                found = lower.get(entry.target)
                if found is None or found.directory:
                    found = BROKEN
            if found.directory:
                raise Refused
            if not any(found is thing for thing in (BROKEN, *lower.values())):
                # One file, whose last entry counts; names of one file have one Thing.
                names = [name for name, thing in own.items() if thing is found]
                found = replace(found, number=entry.number)
                own.update(dict.fromkeys(names, found))
            drop(own, path, itself=True)
            own[path] = found
        elif entry.kind == "file":
            drop(own, path, itself=True)
            own[path] = Thing(directory=False, number=entry.number)
    if BROKEN in own.values():
        raise Refused
    return own


def apply(view: View, entries: list[Entry]) -> View:
    """Return the view with a layer on top."""
    own = own_view(entries, view)
    merged = dict(view)
    for entry in entries:
        if entry.kind == "whiteout":
            drop(merged, entry.path, itself=True)
        elif entry.kind == "opaque":
            drop(merged, entry.path, itself=False)
    hidden = {entry.path for entry in entries if entry.kind == "whiteout"}
    named = [
        path for path in hidden.intersection(own)
        if all(own[other].implicit for other in own if other[: len(path)] == path)
    ]  # fmt: skip
    for path in sorted(own, key=len):
        if any(path[: len(top)] == top for top in named):
            continue  # hidden itself, and only named to hide what is in it
        thing, below = own[path], merged.get(path)
        if not thing.directory:
            drop(merged, path, itself=True)
        elif thing.opaque:
            drop(merged, path, itself=False)
        if thing.implicit:
            thing = below if below is not None and below.directory else Thing(directory=True, number=0)
        merged[path] = replace(thing, opaque=False, implicit=False)
    return merged


def flat(root: Node) -> View:
    view: View = {}
    stack: list[tuple[Path, Node]] = [((), root)]
    while stack:
        path, node = stack.pop()
        view[path] = Thing(directory=node.children is not None, number=node.uid)
        stack += [((*path, name), child) for name, child in (node.children or {}).items()]
    return view


names = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(names, min_size=1, max_size=3).map(tuple)
entries = st.one_of(
    st.builds(Entry, paths, st.just("file"), st.integers(1, 10**6)),
    st.builds(Entry, paths | st.just(()), st.just("dir"), st.integers(1, 10**6)),
    st.builds(Entry, paths, st.just("whiteout")),
    st.builds(Entry, paths | st.just(()), st.just("opaque")),
    st.builds(Entry, paths, st.just("link"), st.integers(1, 10**6), target=paths),
)
stacks = st.lists(st.lists(entries, max_size=7), max_size=5)


@given(stacks)
def test_layers_stack_as_the_model_says(stack: list[list[Entry]]) -> None:
    merged = empty_tree()
    view: View = {(): Thing(directory=True, number=0)}
    for layers in stack:
        try:
            expected = apply(view, layers)
        except Refused:
            try:
                apply_layer(merged, layer(b"".join(entry.block() for entry in layers) + END))
            except FormatError:
                continue
            raise AssertionError("a layer that contradicts itself was taken") from None
        apply_layer(merged, layer(b"".join(entry.block() for entry in layers) + END))
        view = expected
        assert flat(merged) == view


@given(stacks, st.randoms(use_true_random=False))
def test_where_whiteouts_stand_means_nothing(stack: list[list[Entry]], random: object) -> None:
    import random as module

    assert isinstance(random, module.Random)
    results = []
    for shuffle in (False, True):
        merged = empty_tree()
        for layers in stack:
            # One kind of thing per path, or an order would be part of the meaning.
            order = list({entry.path: entry for entry in layers if entry.kind in ("whiteout", "opaque")}.values())
            things = [entry for entry in layers if entry.kind == "file" and len(entry.path) == 1]
            things = list({entry.path: entry for entry in things}.values())
            taken = {entry.path[:1] for entry in things}
            order = [entry for entry in order if len(entry.path) == 1 or entry.path[:1] not in taken]
            order = [entry for entry in order if entry.kind == "whiteout" or entry.path[:1] not in taken]
            mixed = order + things
            if shuffle:
                random.shuffle(mixed)
            apply_layer(merged, layer(b"".join(entry.block() for entry in mixed) + END))
        results.append(flat(merged))
    assert results[0] == results[1]
