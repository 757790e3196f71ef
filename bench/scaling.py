"""scaling: every cost against its size, with the exponent that it grows by, so that a square shows.

All images are made up, so that one thing grows at a time: bytes, entries, layers, changed files; then the images of one
store. Everything through the library, in one process, and durable but for the store of many images, which takes long
enough without; peers have their figures in the other scenarios. Rounds go through the sizes in shuffled order, but for
the store, which can only grow.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.measure import Report, Sample, bytes_written, chosen, common_options, fresh_filesystem, settle, turns
from bench.synthetic import compressible, files_layer, write_image, write_images
from layerfs.api import Image, Store

__all__ = ["main"]

MEGABYTES = (16, 64, 256, 1024)
ENTRIES = (1_000, 4_000, 16_000, 64_000)
LAYERS = (4, 16, 64, 256, 499)
CHANGED = (100, 1_000, 10_000)
#: Of 4 KiB each.
FILES = (1_000, 4_000, 16_000)
#: Images of one store; each has ten layers of its own.
IMAGES = (10, 30, 100, 300, 1_000)
_LAYERS_OF_EACH = 10

Samples = dict[float, list[Sample]]
Lines = dict[str, Samples]


Result = TypeVar("Result")


def _timed(job: Callable[[], Result]) -> tuple[Sample, Result]:
    """Run a job once; return what it took, and what it returned."""
    start, cpu = time.perf_counter(), time.process_time()
    result = job()
    return Sample(time.perf_counter() - start, time.process_time() - cpu), result


def _all(ask: Callable[..., Iterable[object]], *words: object) -> None:
    """Take everything that a method yields."""
    for _ in ask(*words):
        pass


def _loads(
    layouts: Iterator[tuple[float, Path]], rounds: int, more: Callable[[Store, Image, Path], dict[str, Sample]]
) -> Lines:
    """Load each layout into new stores; ``more`` measures what else there is to do with the image."""
    lines: Lines = {}
    made = dict(layouts)
    for _, size in turns(made, (), rounds):
        with fresh_filesystem() as root, Store.open(root / "store") as store:
            settle()
            before = bytes_written(root)
            sample, (found,) = _timed(partial(store.load, made[size]))
            settle()
            sample = replace(sample, extra={"MB written": (bytes_written(root) - before) / 1e6})
            again, _ = _timed(partial(store.load, made[size]))
            measured = {"layerfs load": sample, "layerfs load again": again, **more(store, found, root)}
            for name, each in measured.items():
                lines.setdefault(name, {}).setdefault(size, []).append(each)
    return _by_size(lines)


def _by_size(lines: Lines) -> Lines:
    return {name: dict(sorted(samples.items())) for name, samples in lines.items()}


def _nothing(_store: Store, _found: Image, _root: Path) -> dict[str, Sample]:
    return {}


def _mounted(store: Store, found: Image, root: Path) -> dict[str, Sample]:
    target = root / "mnt"
    target.mkdir()
    _mount_and_umount(store, str(found.id), target)  # what is imported then is no part of it
    samples = {}
    for name, read_only in (("read-only", True), ("container", False)):
        samples[f"layerfs mount, {name}"], mount = _timed(partial(store.mount, found, target, read_only=read_only))
        samples[f"layerfs umount, {name}"], _ = _timed(partial(store.umount, str(target)))
        if mount.container is not None:
            store.remove_container(mount.container)
    return samples


def _checked(store: Store, _found: Image, _root: Path) -> dict[str, Sample]:
    return {"layerfs check": _timed(partial(_all, store.check))[0]}


def _by_megabytes(scratch: Path, sizes: Sequence[int]) -> Iterator[tuple[float, Path]]:
    for size in sizes:
        layout = scratch / f"megabytes-{size}"
        files = ((f"data/{n}", b"".join(compressible(f"{size} {n}", 1 << 22))) for n in range(size // 4))
        write_image(layout, [files_layer(files)])
        yield size, layout


def _by_entries(scratch: Path, sizes: Sequence[int]) -> Iterator[tuple[float, Path]]:
    for size in sizes:
        layout = scratch / f"entries-{size}"
        write_image(layout, [files_layer((f"d{n % 256:03}/f{n:07}", b"%d\n" % n) for n in range(size))])
        yield size, layout


def _layer(seed: str) -> bytes:
    return files_layer((f"{seed}/f{n:02}", f"{seed} {n}\n".encode() * 20) for n in range(20))


def _own_layers(image: int) -> Iterator[bytes]:
    for number in range(_LAYERS_OF_EACH):
        yield _layer(f"i{image}-{number}")


def _by_layers(scratch: Path, sizes: Sequence[int]) -> Iterator[tuple[float, Path]]:
    for size in sizes:
        layout = scratch / f"layers-{size}"
        write_image(layout, (_layer(f"l{n}") for n in range(size)))
        yield size, layout


def _changes(scratch: Path, sizes: Sequence[int], rounds: int) -> Lines:
    """Change so many files of a container, compare it with its image, and commit it."""
    lines: Lines = {}
    layout = scratch / "changes"
    write_image(layout, [files_layer((f"d{n % 256:03}/f{n:07}", b"%d\n" % n) for n in range(20_000))])
    with fresh_filesystem() as root, Store.open(root / "store") as store:
        (found,) = store.load(layout)
        target = root / "mnt"
        target.mkdir()
        for number, size in turns(sizes, (), rounds):
            box = store.mount(found, target, name=f"box-{size}-{number}").container
            assert box is not None
            for n in range(size):
                (target / f"d{n % 256:03}" / f"f{n:07}").write_text(f"{number} {n}\n")
            store.umount(box)
            settle()
            diff, _ = _timed(partial(_all, store.diff, box))
            commit, made = _timed(partial(store.commit, box))
            _all(store.steps, found, made)  # makes its tree
            steps, _ = _timed(partial(_all, store.steps, found, made))
            for name, sample in (
                ("layerfs diff of a container", diff), ("layerfs commit", commit),
                ("layerfs diff of two images", steps),
            ):  # fmt: skip
                lines.setdefault(name, {}).setdefault(size, []).append(sample)
            store.remove_container(box)
            store.remove_image(str(made.id), force=True)
    return _by_size(lines)


def _database(store: Path) -> int:
    """Return the bytes of a store's database, with nothing left in its log."""
    settle()
    (path,) = store.glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def _by_files(scratch: Path, sizes: Sequence[int]) -> Lines:
    """Load an image of so many files that are large enough to be kept once, each of which is a row."""
    samples: Samples = {}
    for size in sizes:
        layout = scratch / f"files-{size}"
        write_image(layout, [files_layer((f"f{n:07}", b"%4096d" % n) for n in range(size))])
        with fresh_filesystem() as root:
            with Store.open(root / "store", sync=False) as store:
                store.load(layout)
            samples[size] = [Sample(_database(root / "store"))]
    return {"layerfs database": samples}


def _mount_and_umount(store: Store, name: str, target: Path) -> None:
    store.mount(name, target, read_only=True)
    store.umount(str(target))


def _store(scratch: Path, sizes: Sequence[int], rounds: int) -> tuple[Lines, Lines]:
    """Fill one store with images and ask at every size; returns times, and bytes on disk."""
    times: Lines = {}
    space: Lines = {}
    with fresh_filesystem() as root, Store.open(root / "store", sync=False) as store:
        target = root / "mnt"
        target.mkdir()
        have = 0
        for size in sizes:
            layout = scratch / f"images-{size}"
            write_images(layout, {f"localhost/app:{number}": _own_layers(number) for number in range(have, size)})
            sample, _ = _timed(partial(store.load, layout))
            new = size - have
            times.setdefault("layerfs load, per image", {})[size] = [Sample(sample.wall / new, sample.cpu / new)]
            have = size
            name = f"localhost/app:{size // 2}"
            jobs: dict[str, Callable[[], object]] = {
                "layerfs images": store.images,
                "layerfs resolve a name": partial(store.resolve, name),
                "layerfs df": store.usage,
                "layerfs gc, nothing to do": store.gc,
                "layerfs mount and umount": partial(_mount_and_umount, store, name, target),
            }
            for title, job in jobs.items():
                times.setdefault(title, {})[size] = [_timed(job)[0] for _ in range(rounds)]
            database = _database(root / "store")
            trees = sum(path.stat().st_blocks * 512 for path in (root / "store/images").rglob("*.erofs"))
            space.setdefault("layerfs database", {})[size] = [Sample(database)]
            space.setdefault("layerfs merged trees", {})[size] = [Sample(trees)]
    return times, space


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("scaling", __doc__, rounds=5)
    parser.add_argument("--quick", action="store_true", help="without the largest sizes")
    options = parser.parse_args(arguments)
    report = Report("scaling", vars(options))

    def sizes(every: Sequence[int]) -> Sequence[int]:
        return every[:3] if options.quick else every

    def show(title: str, axis: str, lines: Lines, unit: tuple[str, float]) -> None:
        report.curve(title, axis, chosen(lines, report.on), unit=unit)

    with fresh_filesystem() as scratch:
        loads = (
            ("an image by bytes", "MB", _by_megabytes(scratch, sizes(MEGABYTES)), _checked),
            ("an image by entries", "entries", _by_entries(scratch, sizes(ENTRIES)), _nothing),
            ("an image by layers", "layers", _by_layers(scratch, sizes(LAYERS)), _mounted),
        )
        for title, axis, layouts, more in loads:
            show(title, axis, _loads(layouts, options.rounds, more), ("ms", 1e3))
        changed = _changes(scratch, sizes(CHANGED), options.rounds)
        show("a container by changed files", "files", changed, ("ms", 1e3))
        times, space = _store(scratch, sizes(IMAGES), options.rounds)
        show(f"a store by images of {_LAYERS_OF_EACH} layers", "images", times, ("ms", 1e3))
        show("bytes of a store", "images", space, ("MB", 1e-6))
        files = _by_files(scratch, sizes(FILES))
        show("bytes of a database by large files", "files", files, ("MB", 1e-6))
    report.write()
