"""mount: mount and umount through the library and through the command line, at 1 and up to 499 layers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.load import layerfs_command, store_environment
from bench.measure import Report, Sample, command, common_options, fresh_filesystem, interleave
from layerfs.api import Image, Store

__all__ = ["main", "mounted", "store_with"]

#: Umounting frees what was read through the mount: a mount is touched once before, as every real one is.
_IN_A_ROW = 20


@contextlib.contextmanager
def store_with(names: Sequence[str]) -> Iterator[tuple[Store, Path, dict[str, Image]]]:
    """A store on a fresh file system holding the named images of the corpus; yields it, its place, and the images."""
    with fresh_filesystem() as root:
        environment = store_environment(root)
        store = Store.open(environment["LAYERFS_ROOT"], runroot=environment["LAYERFS_RUNROOT"])
        with store:
            images = {name: store.load(_source(image(name)))[0] for name in names}
            yield store, root, images


def _source(found: CorpusImage) -> Path:
    return found.oci_archive


@contextlib.contextmanager
def mounted(store: Store, found: Image, target: Path, *, read_only: bool) -> Iterator[Path]:
    """``found`` mounted on ``target`` for the time of the block; a container made for it is removed again."""
    target.mkdir(exist_ok=True)
    mount = store.mount(found, target, read_only=read_only)
    try:
        yield target
    finally:
        store.umount(mount.target)
        if mount.container is not None:
            store.remove_container(mount.container)


def _library(store: Store, found: Image, target: Path, kind: str) -> tuple[Sample, Sample]:
    mounts = umounts = 0.0
    name = "bench" if kind == "existing container" else None
    if name is not None:
        store.umount(store.mount(found, target, name=name).target)
    for _ in range(_IN_A_ROW):
        start = time.perf_counter()
        mount = store.mount(None if name else found, target, name=name, read_only=kind == "read-only")
        mounts += time.perf_counter() - start
        next(target.iterdir(), None)
        start = time.perf_counter()
        store.umount(mount.target)
        umounts += time.perf_counter() - start
        if mount.container is not None and name is None:
            store.remove_container(mount.container)
    if name is not None:
        store.remove_container(name)
    return Sample(mounts / _IN_A_ROW), Sample(umounts / _IN_A_ROW)


def _through_library(
    store: Store, images: Mapping[str, Image], target: Path, kind: str, *, rounds: int, report: Report
) -> None:
    umounts: dict[str, list[Sample]] = {name: [] for name in images}

    def one(name: str, found: Image) -> Callable[[], Sample]:
        def run() -> Sample:
            mounting, unmounting = _library(store, found, target, kind)
            umounts[name].append(unmounting)
            return mounting

        return run

    mounts, failed = interleave({name: one(name, found) for name, found in images.items()}, rounds, report.on)
    base = next(iter(images))
    report.table(f"library: mount ({kind})", mounts, base=base, failed=failed, unit=("ms", 1000))
    done = {name: found for name, found in umounts.items() if name not in failed}
    report.table(f"library: umount ({kind})", done, base=base, unit=("ms", 1000))


def _through_command_line(
    root: Path, images: Mapping[str, Image], target: Path, rounds: int, *, report: Report
) -> None:
    environment = store_environment(root)
    program = layerfs_command()
    umounts: dict[str, list[Sample]] = {name: [] for name in images}

    def one(name: str, found: Image) -> Callable[[], Sample]:
        def run() -> Sample:
            mounting = command([program, "mount", "--read-only", str(found.id), target], env=environment)
            umounts[name].append(command([program, "umount", target], env=environment))
            return mounting

        return run

    variants: dict[str, Callable[[], Sample]] = {
        "layerfs --version": lambda: command([program, "--version"], env=environment)
    }
    variants |= {f"layerfs mount {name}": one(name, found) for name, found in images.items()}
    mounts, failed = interleave(variants, rounds, report.on)
    report.table("command line: mount --read-only", mounts, base="layerfs --version", failed=failed)
    done = {name: found for name, found in umounts.items() if name not in failed}
    report.table("command line: umount", done, base=next(iter(images)))


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("mount", __doc__, rounds=5)
    parser.add_argument("--image", action="append", help="deep-1, python-app, deep-101 and deep-499 unless given")
    options = parser.parse_args(arguments)
    report = Report("mount", {**vars(options), "mounts in a row": _IN_A_ROW})
    with store_with(options.image or ["deep-1", "python-app", "deep-101", "deep-499"]) as (store, root, images):
        target = root / "mnt"
        target.mkdir()
        for kind in ("read-only", "existing container", "new container"):
            _through_library(store, images, target, kind, rounds=options.rounds, report=report)
        _through_command_line(root, images, target, options.rounds, report=report)
    report.write()
