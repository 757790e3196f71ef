"""mount: mount and umount through the library and through the command line, at 1 and up to 499 layers.

Beside the library: overlayfs over one directory per layer, by the same system calls, as who unpacks layers has to mount
them. Beside the command: podman and ctr, which mount an image in a storage of their own, made outside the clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.debian import run
from bench.fuse_mounts import layer_directories, mount_stack
from bench.load import layerfs_command, store_environment
from bench.measure import (
    Report,
    Sample,
    command,
    common_options,
    fresh_filesystem,
    image_name,
    interleave,
    output,
    prepare,
)
from bench.peers import containerd, podman, with_daemon
from layerfs.api import Image, Store
from layerfs.linux.mount_api import umount

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


def _stack(directories: Sequence[str], target: Path, writable: Path | None) -> tuple[Sample, Sample]:
    """Mount and unmount overlayfs over directories; with an upper directory of its own each time, if writable."""
    mounts = umounts = 0.0
    for number in range(_IN_A_ROW):
        upper = work = None
        if writable is not None:
            upper, work = writable / f"upper-{number}", writable / f"work-{number}"
            for directory in (upper, work):
                directory.mkdir(exist_ok=True)
        start = time.perf_counter()
        mount_stack(directories, upper, work, target)
        mounts += time.perf_counter() - start
        next(target.iterdir(), None)
        start = time.perf_counter()
        umount(target)
        umounts += time.perf_counter() - start
    return Sample(mounts / _IN_A_ROW), Sample(umounts / _IN_A_ROW)


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


#: Images that the other tools' commands are spared.
_TOO_DEEP = ("deep-499", "spread-499")

_IMAGES = ("deep-1", "python-app", "deep-101", *_TOO_DEEP)

Pair = Callable[[], tuple[Sample, Sample]]


#: A way to mount, and the image.
Variant = tuple[str, str]


def _both(
    pairs: Mapping[Variant, Pair], title: str, rounds: int, report: Report, broken: Mapping[str, str] | None = None
) -> None:
    """Measure mounting and unmounting of all images in turns; each image has a table of its own for both."""
    umounts: dict[Variant, list[Sample]] = {name: [] for name in pairs}

    def one(name: Variant, pair: Pair) -> Callable[[], Sample]:
        def run() -> Sample:
            mounting, unmounting = pair()
            umounts[name].append(unmounting)
            return mounting

        return run

    named = {", ".join(name): name for name in pairs}
    ready = {words: one(name, pairs[name]) for words, name in named.items()}
    mounts, failed = interleave(ready, rounds, report.on)
    for image_word in dict.fromkeys(name for _, name in pairs):
        chosen_ones = {words: way for words, (way, found) in named.items() if found == image_word}
        said = {way: failed[words] for words, way in chosen_ones.items() if words in failed} | dict(broken or {})
        rows = {way: mounts[words] for words, way in chosen_ones.items() if words in mounts}
        report.table(f"{title}, {image_word}: mount", rows, base="layerfs", failed=said, unit=("ms", 1000))
        rows = {way: umounts[named[words]] for words, way in chosen_ones.items() if words in mounts}
        report.table(f"{title}, {image_word}: umount", rows, base="layerfs", unit=("ms", 1000))


def _through_library(
    store: Store, images: Mapping[str, Image], root: Path, kind: str, *, rounds: int, report: Report
) -> None:
    target = root / "mnt"
    pairs: dict[Variant, Pair] = {}
    for name, found in images.items():
        pairs["layerfs", name] = partial(_library, store, found, target, kind)
        if kind != "existing container":
            writable = None if kind == "read-only" else root / f"upper-{name}"
            if writable is not None:
                writable.mkdir()
            pairs["overlayfs on directories", name] = partial(_stack, layer_directories(store, found), target, writable)
    _both(pairs, f"library, {kind}", rounds, report)


@contextmanager
def _podman(images: Sequence[str], root: Path) -> Iterator[dict[Variant, Pair]]:
    work = root / "p"
    work.mkdir()
    with podman(work) as tool:
        pairs: dict[Variant, Pair] = {}
        for name in images:
            reference = f"localhost/{name}:latest"
            storage = f"containers-storage:[overlay@{work}/root+{work}/run]{reference}"
            run(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{image(name).oci}:latest", storage])

            def pair(reference: str = reference) -> tuple[Sample, Sample]:
                mounting = command([*tool, "image", "mount", reference])
                return mounting, command([*tool, "image", "umount", reference])

            pairs["podman image mount", name] = pair
        yield pairs


@contextmanager
def _containerd(images: Sequence[str], root: Path) -> Iterator[dict[Variant, Pair]]:
    work, target = root / "c", root / "mnt"
    work.mkdir()
    with containerd(work) as (ctr, pid):
        pairs: dict[Variant, Pair] = {}
        for name in images:
            output([*ctr, "images", "import", "--base-name", f"localhost/{name}", image(name).oci_archive])

            def pair(reference: str = f"localhost/{name}:latest") -> tuple[Sample, Sample]:
                mounting = with_daemon(lambda: command([*ctr, "images", "mount", reference, target]), pid)
                return mounting, with_daemon(lambda: command([*ctr, "images", "unmount", "--rm", target]), pid)

            pairs["ctr images mount", name] = pair
        yield pairs


def _not_tried() -> tuple[Sample, Sample]:
    raise RuntimeError("not tried: it takes minutes to import 499 layers, or cannot")


def _through_command_line(root: Path, images: Mapping[str, Image], rounds: int, report: Report) -> None:
    environment = store_environment(root)
    program = layerfs_command()
    target = root / "mnt"

    def ours(found: Image) -> tuple[Sample, Sample]:
        mounting = command([program, "mount", "--read-only", str(found.id), target], env=environment)
        return mounting, command([program, "umount", target], env=environment)

    pairs: dict[Variant, Pair] = {("layerfs", name): partial(ours, found) for name, found in images.items()}
    broken: dict[str, str] = {}
    few = [name for name in images if name not in _TOO_DEEP]
    with ExitStack() as stack:
        for name, make, needs in (("podman image mount", _podman, "podman"), ("ctr images mount", _containerd, "ctr")):
            pairs |= prepare(stack, name, partial(make, few, root), broken, needs=needs) or {}
            if name not in broken:
                pairs |= {(name, deep): _not_tried for deep in _TOO_DEEP if deep in images}
        _both(pairs, "command line, read-only", rounds, report, broken)


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("mount", __doc__, rounds=5)
    parser.add_argument("--image", action="append", type=image_name, help=f"{', '.join(_IMAGES)} unless given")
    options = parser.parse_args(arguments)
    report = Report("mount", {**vars(options), "mounts in a row": _IN_A_ROW})
    with store_with(options.image or _IMAGES) as (store, root, images):
        (root / "mnt").mkdir()
        for kind in ("read-only", "existing container", "new container"):
            _through_library(store, images, root, kind, rounds=options.rounds, report=report)
        _through_command_line(root, images, options.rounds, report)
    report.write()
