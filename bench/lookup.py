"""lookup: what finding one name costs, by the number of layers and by the size of the directory, to where it grows.

Each size is an image of its own, made up. The library resolves in the image's merged tree; the kernel's figures are of
``lstat`` on mounts: our EROFS image, our FUSE union, overlayfs and fuse-overlayfs over one directory per layer.
``known`` are names that were looked at before, ``first`` ones after emptying the caches, ``missing`` names of which
no two are the same. Client and server of FUSE are pinned to one CPU.
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
from bench.measure import Report, Sample, chosen, common_options, drop_caches, fresh_filesystem
from bench.mount import mounted
from bench.synthetic import DeepShape, files_layer, write_deep, write_image
from layerfs.api import Image, Store

__all__ = ["main"]

LAYERS = (1, 4, 16, 64, 256, 499)
NAMES = (10, 100, 1_000, 10_000, 100_000)

#: Names looked up per sample.
_LOOKS = 4_000

#: Looks names of a list up; how many of them there are is the list's length.
Look = Callable[[Sequence[bytes]], None]
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


def _library(store: Store, found: Image, paths: Sequence[bytes], rounds: int) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {"layerfs library, known": [], "layerfs library, missing": []}
    with store.tree(found) as tree:

        def look(names: Sequence[bytes]) -> None:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    tree.resolve(name, follow=False)

        look(paths)
        for number in range(rounds):
            samples["layerfs library, known"].append(_timed(look, paths))
            samples["layerfs library, missing"].append(_timed(look, _missing(paths, number)))
    return samples


def _on_mount(name: str, top: Path, paths: Sequence[bytes], rounds: int) -> dict[str, list[Sample]]:
    look = _lstat(os.fsencode(top) + b"/")
    samples: dict[str, list[Sample]] = {f"{name}, {kind}": [] for kind in ("known", "first", "missing")}
    for number in range(rounds):
        drop_caches()
        look(paths[:1])
        samples[f"{name}, first"].append(_timed(look, paths))
        samples[f"{name}, known"].append(_timed(look, paths))
        samples[f"{name}, missing"].append(_timed(look, _missing(paths, number)))
    return samples


def _mounts(store: Store, found: Image, work: Path) -> dict[str, AbstractContextManager[Path]]:
    """How each file system shows the image, each to be entered once."""

    @contextlib.contextmanager
    def union(variant: Variant) -> Iterator[Path]:
        with mounted_union(variant, work) as made:
            yield made.target

    ways: dict[str, AbstractContextManager[Path]] = {
        "layerfs, EROFS": mounted(store, found, work / "read-only", read_only=True)
    }
    for name, variant in union_mounts(store, found, layer_directories(store, found)).items():
        if name != "layerfs, directories":
            ways["layerfs, FUSE" if name == "layerfs" else name] = union(variant)
    return ways


def _measure(title: str, axis: str, images: Iterator[tuple[float, Path]], report: Report, rounds: int) -> None:
    lines: Lines = {}
    failed: dict[str, str] = {}
    with fresh_filesystem() as root:
        for size, layout in images:
            work = root / f"{size:g}"
            work.mkdir()
            with Store.open(work / "store", sync=False) as store:
                (found,) = store.load(layout)
                with store.tree(found) as tree:
                    paths = [path.lstrip(b"/") for path, _, _ in tree.walk()]
                paths = random.Random(7).choices(paths, k=_LOOKS)
                ways = {"layerfs library": partial(_library, store, found, paths, rounds)}
                for name, mount in _mounts(store, found, work).items():
                    ways[name] = partial(_through, name, mount, paths, rounds)
                for name, way in chosen(ways, report.on).items():
                    if name in failed:
                        continue
                    try:
                        for line, samples in way().items():
                            lines.setdefault(line, {})[size] = samples
                    except (OSError, RuntimeError) as error:
                        failed[name] = f"at {size:g} {axis}: {error}"
    for kind in ("known", "first", "missing"):
        chosen_lines = {
            line.removesuffix(f", {kind}"): sizes for line, sizes in lines.items() if line.endswith(f", {kind}")
        }
        if chosen_lines:
            report.curve(f"{title}: {kind} names", axis, chosen_lines, unit=("us", 1e6))
    for name, message in failed.items():
        print(f"{name} failed {' '.join(message.split())[:300]}")


def _through(
    name: str, mount: AbstractContextManager[Path], paths: Sequence[bytes], rounds: int
) -> dict[str, list[Sample]]:
    # Pinned first, so that a server that is started for it is too.
    with pinned(), mount as top:
        return _on_mount(name, top, paths, rounds)


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
