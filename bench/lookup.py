"""lookup: what finding one name costs, by the number of layers and by the size of the directory, to where it grows.

Each size is an image of its own, made up. The library resolves in the image's merged tree; the kernel's figures are of
``lstat`` on mounts: our EROFS image, our FUSE union, overlayfs and fuse-overlayfs over one directory per layer.
``first`` are names of which no two are the same, right after mounting and emptying all caches, so from the disk;
``known`` the same again, ``missing`` names that nobody has asked for. Client and server of FUSE are pinned to one CPU.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from bench.fuse_mounts import Variant, layer_directories, mounted_union, pinned, union_mounts
from bench.measure import Report, Sample, attempt, chosen, common_options, drop_caches, fresh_filesystem, turns
from bench.mount import mounted
from bench.synthetic import DeepShape, files_layer, write_deep, write_image
from layerfs.api import Image, Store

__all__ = ["main"]

LAYERS = (1, 4, 16, 64, 256, 499)
NAMES = (10, 100, 1_000, 10_000, 100_000)

#: Names looked up per sample, if the image has so many.
_LOOKS = 4_000

#: Looks names of a list up; how many of them there are is the list's length.
Look = Callable[[Sequence[bytes]], None]
#: Makes what looks names up, for the time of a block.
Way = Callable[[], AbstractContextManager[Look]]
Lines = dict[str, dict[float, list[Sample]]]


def _timed(look: Look, paths: Sequence[bytes]) -> Sample:
    start, cpu = time.perf_counter(), time.process_time()
    look(paths)
    wall = time.perf_counter() - start
    return Sample(wall / len(paths), (time.process_time() - cpu) / len(paths))


def _lstat(top: bytes) -> Look:
    def look(paths: Sequence[bytes]) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(top + path)

    return look


def _missing(paths: Sequence[bytes], number: int) -> list[bytes]:
    """Names beside the given ones that nobody has asked for before."""
    return [b"%s/missing-%d-%d" % (os.path.dirname(path), number, place) for place, path in enumerate(paths)]


@contextlib.contextmanager
def _library(store: Store, found: Image) -> Iterator[Look]:
    with store.tree(found) as tree:

        def look(names: Sequence[bytes]) -> None:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    tree.resolve(name, follow=False)

        yield look


@contextlib.contextmanager
def _on_mount(mount: Callable[[], AbstractContextManager[Path]]) -> Iterator[Look]:
    # Pinned first, so that a server that is started for it is too.
    with pinned(), mount() as top:
        yield _lstat(os.fsencode(top) + b"/")


@contextlib.contextmanager
def _union(variant: Variant, work: Path) -> Iterator[Path]:
    with mounted_union(variant, work) as made:
        yield made.target


def _ways(store: Store, found: Image, work: Path) -> dict[str, Way]:
    """How names of an image can be looked up, each to be entered for every round anew."""
    erofs = partial(mounted, store, found, work / "read-only", read_only=True)
    ways: dict[str, Way] = {
        "layerfs library": partial(_library, store, found), "layerfs, EROFS": partial(_on_mount, erofs)
    }  # fmt: skip
    for name, variant in union_mounts(store, found, layer_directories(store, found)).items():
        if name not in ("layerfs, directories", "layerfs, EROFS and overlayfs"):
            ways[name] = partial(_on_mount, partial(_union, variant, work))
    return ways


def _round(way: Way, paths: Sequence[bytes], number: int) -> dict[str, Sample]:
    with way() as look:
        drop_caches()
        look([b"."])
        first = _timed(look, paths)
        again = list(paths) * -(-_LOOKS // len(paths))
        return {"first": first, "known": _timed(look, again), "missing": _timed(look, _missing(again, number))}


def _measure(title: str, axis: str, images: Iterator[tuple[float, Path]], report: Report, rounds: int) -> None:
    curves: dict[str, Lines] = {kind: {} for kind in ("known", "first", "missing")}
    failed: dict[str, str] = {}
    with fresh_filesystem() as root:
        for size, layout in images:
            work = root / f"{size:g}"
            work.mkdir()
            with Store.open(work / "store", sync=False) as store:
                (found,) = store.load(layout)
                with store.tree(found) as tree:
                    paths = [path.lstrip(b"/") for path, _, _ in tree.walk()]
                # Each only once: a name that was looked at a moment ago is no first one.
                paths = random.Random(7).sample(paths, min(_LOOKS, len(paths)))
                ways = chosen(_ways(store, found, work), report.on)
                for number, name in turns(ways, failed, rounds):
                    one = partial(_round, ways[name], paths, number)
                    for kind, sample in (attempt(one, name, failed, f"at {size:g} {axis}: ") or {}).items():
                        curves[kind].setdefault(name, {}).setdefault(size, []).append(sample)
    for kind, lines in curves.items():
        report.curve(f"{title}: {kind} names", axis, lines, unit=("us", 1e6), failed=failed)


def _by_layers(scratch: Path, sizes: Sequence[int]) -> Iterator[tuple[float, Path]]:
    for count in sizes:
        layout = scratch / f"layers-{count}"
        write_deep(layout, DeepShape(layers=count))
        yield count, layout


def _by_names(scratch: Path, sizes: Sequence[int]) -> Iterator[tuple[float, Path]]:
    for count in sizes:
        layout = scratch / f"names-{count}"
        write_image(layout, [files_layer((f"directory/name-{number:06}", b"") for number in range(count))])
        yield count, layout


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("lookup", __doc__, rounds=5)
    parser.add_argument("--quick", action="store_true", help="three sizes of each")
    options = parser.parse_args(arguments)
    report = Report("lookup", vars(options))
    step = 2 if options.quick else 1
    with fresh_filesystem() as scratch:
        _measure("by layers", "layers", _by_layers(scratch, LAYERS[::step]), report, options.rounds)
        _measure("by names in a directory", "names", _by_names(scratch, NAMES[::step]), report, options.rounds)
    report.write()
