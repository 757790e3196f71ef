"""Where the bytes of an image are: what each layer adds, changes and hides, and what is stored but never seen.

All layer trees are walked together, directory by directory, in the order of names. So memory does not grow with the
image: what is kept is one row per layer, the largest files, and a picture of the tree without its small parts.

*Wasted* are bytes of files that an upper layer hides: by a whiteout, an opaque directory, or an entry in their place.
The *efficiency* is what dive calls so: the smallest size that each path ever has, summed up, divided by the sum of all
its sizes; a removal counts as the size 0.

Source: dive, dive/filetree/efficiency.go, for the score.
"""

from __future__ import annotations

import heapq
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from layerfs.formats.erofs.reader import DIRECTORY_TYPE, Tree
from layerfs.formats.whiteout import OPAQUE_XATTR, is_whiteout_device

__all__ = ["Block", "FileReport", "ImageReport", "LayerReport", "analyze"]

#: Rows of the lists of files.
_MOST_FILES = 100
#: A directory or file below this part of the image is not drawn by itself: no eye would find it.
_FINEST = 3000


@dataclass(slots=True)
class LayerReport:
    """One layer: entries that it adds, changes and hides (directories are not counted), and bytes of files.

    Attributes:
        bytes: of all its files.
        added: entries where nothing was before.
        changed: entries in place of others.
        hidden: entries of lower layers that it hides.
        hides_bytes: bytes of these.
        wasted: bytes of its own that upper layers hide.
    """

    bytes: int = 0
    added: int = 0
    changed: int = 0
    hidden: int = 0
    hides_bytes: int = 0
    wasted: int = 0


@dataclass(frozen=True, slots=True, order=True)
class FileReport:
    """A file by its size: ``size`` of the largest or the wasted bytes, ``layers`` that have it, lowest first."""

    size: int
    path: bytes
    layers: tuple[int, ...]


@dataclass(slots=True)
class Block:
    """A part of the picture: a directory, a file, or the rest of a directory (no name) with visible ``size``.

    ``layer`` is where most of its visible bytes come from; ``wasted`` are bytes below it that are hidden.
    """

    name: bytes
    size: int = 0
    wasted: int = 0
    layer: int = 0
    children: list[Block] = field(default_factory=list)


@dataclass(slots=True)
class ImageReport:
    """Everything about one image.

    Attributes:
        layers: lowest first.
        stored: bytes of all files of all layers.
        visible: bytes of files that the image shows.
        wasted: bytes that upper layers hide.
        efficiency: from 0 to 1, see the module.
        largest: the largest visible files, the largest first.
        repeated: paths with wasted bytes, the most wasteful first.
        picture: of the whole tree.
    """

    layers: list[LayerReport]
    stored: int = 0
    visible: int = 0
    wasted: int = 0
    efficiency: float = 1.0
    largest: list[FileReport] = field(default_factory=list)
    repeated: list[FileReport] = field(default_factory=list)
    picture: Block = field(default_factory=lambda: Block(b"/"))

    @property
    def user_wasted(self) -> float:
        """The wasted part of what is above the lowest layer, from 0 to 1."""
        above = self.stored - (self.layers[0].bytes if self.layers else 0)
        return min(1.0, self.wasted / above) if above > 0 else 0.0


def analyze(trees: Sequence[Tree], *, check: Callable[[], None] | None = None) -> ImageReport:
    """Look at an image.

    Args:
        trees: of its layers by themselves, lowest first.
        check: called once per directory; what it raises ends the work.

    Raises:
        FormatError: a tree is damaged.
    """
    return _Analysis(trees, check or (lambda: None)).run()


@dataclass(slots=True)
class _Frame:
    """A directory under way: its places in the layers, what hides below it, and the names still to do."""

    path: bytes
    events: tuple[int, ...]
    names: Iterator[tuple[bytes, list[tuple[int, int, int]]]]
    block: Block
    by_layer: dict[int, int] = field(default_factory=dict)


class _Analysis:
    """One run of :func:`analyze`."""

    def __init__(self, trees: Sequence[Tree], check: Callable[[], None]) -> None:
        self._trees = trees
        self._check = check
        self._report = ImageReport([LayerReport() for _ in trees])
        self._least = 0
        self._largest: list[FileReport] = []
        self._repeated: list[FileReport] = []
        self._linked: set[tuple[int, int]] = set()
        # Of the bytes of all layers, about: what is too small to be drawn.
        total = sum(slot.blocks for tree in trees for slot in tree.devices[:1]) * 512
        self._finest = max(1, total // _FINEST)

    def run(self) -> ImageReport:
        """Walk all trees."""
        report = self._report
        frames = [self._frame(b"", (), [(number, tree.root) for number, tree in enumerate(self._trees)], Block(b"/"))]
        report.picture = frames[0].block
        while frames:
            frame = frames[-1]
            found = next(frame.names, None)
            if found is None:
                frames.pop()
                self._close(frame, frames[-1] if frames else None)
                continue
            inner = self._visit(frame, *found)
            if inner is not None:
                frames.append(inner)
        report.visible = report.stored - report.wasted
        report.efficiency = self._least / report.stored if report.stored else 1.0
        report.largest = sorted(self._largest, reverse=True)
        report.repeated = sorted(self._repeated, reverse=True)
        return report

    def _frame(self, path: bytes, events: tuple[int, ...], places: list[tuple[int, int]], block: Block) -> _Frame:
        self._check()
        entries = [
            [(name, number, nid, kind) for name, nid, kind in self._trees[number].scan(place)]
            for number, place in places
        ]
        return _Frame(path, events, _grouped(heapq.merge(*entries)), block)

    def _visit(self, frame: _Frame, name: bytes, found: list[tuple[int, int, int]]) -> _Frame | None:
        """Take one name with its places (layer, inode, type); return the frame of a directory."""
        path = frame.path + b"/" + name
        events = list(frame.events)
        files: list[tuple[int, int]] = []
        places: list[tuple[int, int]] = []
        present = ""
        removed = False
        for number, nid, kind in found:
            tree, row = self._trees[number], self._report.layers[number]
            last = _last(files, places)
            if present and any(last < event <= number for event in frame.events):
                present = ""  # a directory above was hidden in between
            if kind == DIRECTORY_TYPE:
                if present == "file" or OPAQUE_XATTR in tree.xattrs(nid):
                    events.append(number)
                present = "directory"
                places.append((number, nid))
                continue
            inode = tree.inode(nid)
            events.append(number)
            if is_whiteout_device(inode.mode, inode.rdev):
                removed = removed or bool(present)
                present = ""
                continue
            row.changed += bool(present)
            row.added += not present
            present = "file"
            files.append((number, self._size(number, nid, inode.mode, inode.size, inode.nlink)))
        self._count(frame, path, name, files, sorted(set(events)), removed=removed)
        if not places:
            return None
        return self._frame(path, tuple(sorted(set(events))), places, Block(name))

    def _size(self, number: int, nid: int, mode: int, size: int, links: int) -> int:
        """Return the bytes of a file, once for all its names."""
        if not stat.S_ISREG(mode):
            return 0
        if links > 1:
            if (number, nid) in self._linked:
                return 0
            self._linked.add((number, nid))
        return size

    def _count(
        self, frame: _Frame, path: bytes, name: bytes, files: list[tuple[int, int]], events: list[int], *, removed: bool
    ) -> None:
        report = self._report
        wasted = 0
        sizes = [size for _, size in files]
        for number, size in files:
            row = report.layers[number]
            row.bytes += size
            report.stored += size
            hider = next((event for event in events if event > number), None)
            if hider is None:
                self._show(frame, path, name, number, size)
                continue
            wasted += size
            row.wasted += size
            report.layers[hider].hidden += 1
            report.layers[hider].hides_bytes += size
        if files:
            gone = removed or all(any(event > number for event in events) for number, _ in files)
            self._least += 0 if gone else min(sizes)
        report.wasted += wasted
        frame.block.wasted += wasted
        if wasted:
            row_of = FileReport(wasted, path, tuple(number for number, _ in files))
            _keep(self._repeated, row_of)

    def _show(self, frame: _Frame, path: bytes, name: bytes, number: int, size: int) -> None:
        """Draw a visible file."""
        frame.by_layer[number] = frame.by_layer.get(number, 0) + size
        frame.block.size += size
        _keep(self._largest, FileReport(size, path, (number,)))
        if size >= self._finest:
            frame.block.children.append(Block(name, size, 0, number))

    def _close(self, frame: _Frame, parent: _Frame | None) -> None:
        """End a directory: what is too small to be drawn becomes one block, and the parent gets it."""
        block = frame.block
        block.layer = max(frame.by_layer, key=lambda number: frame.by_layer[number], default=0)
        block.children.sort(key=lambda child: -child.size)
        if block.children and (rest := block.size - sum(child.size for child in block.children)) > 0:
            block.children.append(Block(b"", rest, 0, block.layer))
        if parent is None:
            return
        parent.block.size += block.size
        parent.block.wasted += block.wasted
        for number, size in frame.by_layer.items():
            parent.by_layer[number] = parent.by_layer.get(number, 0) + size
        if block.size >= self._finest:
            parent.block.children.append(block)


def _grouped(
    entries: Iterator[tuple[bytes, int, int, int]],
) -> Iterator[tuple[bytes, list[tuple[int, int, int]]]]:
    """Yield each name once, with its places by layer."""
    name: bytes | None = None
    found: list[tuple[int, int, int]] = []
    for each, number, nid, kind in entries:
        if each != name:
            if name is not None:
                yield name, found
            name, found = each, []
        found.append((number, nid, kind))
    if name is not None:
        yield name, found


def _last(files: list[tuple[int, int]], places: list[tuple[int, int]]) -> int:
    return max([number for number, _ in files] + [number for number, _ in places], default=-1)


def _keep(kept: list[FileReport], row: FileReport) -> None:
    """Keep the largest rows, in a heap with the smallest on top."""
    if not row.size:
        return
    if len(kept) < _MOST_FILES:
        heapq.heappush(kept, row)
    elif kept[0] < row:
        heapq.heapreplace(kept, row)
