"""resolve: every path of an image looked up in random order, by the library, by the kernel, and through all layers.

All paths lead to what they name without a symlink on the way, as a walk gives them. Warm: each variant ran once before.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.layered import LayeredLookup
from bench.measure import Report, Sample, common_options, image_name, interleave
from bench.mount import mounted, store_with
from layerfs.api import Image, Store
from layerfs.formats.erofs.reader import Tree
from layerfs.store.layout import Layout
from layerfs.store.view import ImageTree

__all__ = ["main", "walk_paths"]

_BASE = "os.lstat, mounted, whole path"


def walk_paths(root: Path) -> list[bytes]:
    """All paths below ``root``, relative to it, without those on other file systems."""
    found: list[bytes] = []
    pending = [b""]
    top = os.fsencode(root)
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(top, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                found.append(path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
    return found


def _over(paths: Sequence[bytes], look: Callable[[bytes], object]) -> Callable[[], Sample]:
    def run() -> Sample:
        start = time.perf_counter()
        cpu = time.process_time()
        for path in paths:
            look(path)
        wall = time.perf_counter() - start
        return Sample(wall / len(paths), (time.process_time() - cpu) / len(paths))

    return run


def _layer_trees(root: Path, store: Store, found: Image) -> list[Tree]:
    """The tree of each layer, bottom first, in memory."""
    layout = Layout(str(root / "store"), str(root / "run"))
    return [Tree(Path(layout.layer_tree(layer.diff_id)).read_bytes()) for layer in store.layers(found)]


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _variants(
    tree: ImageTree, layered: LayeredLookup, mount: tuple[Path, int], paths: Sequence[bytes]
) -> dict[str, Callable[[], Sample]]:
    """The ways to look a path up; ``mount`` is where the image is mounted, and a descriptor of that."""
    top = os.fsencode(mount[0]) + b"/"
    return {
        "library resolve, merged tree": _over(paths, lambda path: tree.resolve(path, follow=False)),
        "lookup through one tree per layer": _over(paths, layered.resolve),
        _BASE: _over(paths, lambda path: os.lstat(top + path)),
        "os.stat(dir_fd=), mounted": _over(paths, lambda path: os.stat(path, dir_fd=mount[1], follow_symlinks=False)),
    }


def _measure(
    title: str, variants: dict[str, Callable[[], Sample]], paths: Sequence[bytes], report: Report, rounds: int
) -> None:
    for run in variants.values():
        run()
    samples, failed = interleave(variants, rounds, report.on)
    mean = sum(path.count(b"/") + 1 for path in paths) / len(paths)
    report.table(
        f"{title}: {len(paths)} paths of {mean:.1f} components on average, warm",
        samples,
        base=_BASE,
        failed=failed,
        unit=("us", 1e6),
    )


def _image(store: Store, root: Path, found: Image, title: str, report: Report, *, rounds: int) -> None:
    # A function of its own: when it returns, nothing maps files of the store's file system any more.
    trees = _layer_trees(root, store, found)
    with (
        mounted(store, found, root / "mnt", read_only=True) as target,
        _opened(target) as descriptor,
        store.tree(found) as tree,
    ):
        everything = walk_paths(target)
        random.Random(7).shuffle(everything)
        for paths in (everything, [path for path in everything if path.count(b"/") == 5]):
            if paths:
                variants = _variants(tree, LayeredLookup(trees), (target, descriptor), paths)
                _measure(f"{title}, {len(trees)} layers", variants, paths, report, rounds)


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("resolve", __doc__, rounds=7)
    parser.add_argument("--image", action="append", type=image_name, help="python-app and deep-101 unless given")
    options = parser.parse_args(arguments)
    report = Report("resolve", vars(options))
    with store_with(options.image or ["python-app", "deep-101"]) as (store, root, images):
        for name, found in images.items():
            _image(store, root, found, name, report, rounds=options.rounds)
    report.write()
