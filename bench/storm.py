"""storm: stat, missing names, readdir and reading everything on a mounted image beside the same tree on plain ext4.

Warm: each variant ran once before; cold: after emptying all caches. The same tree is also measured from many layers and
from one.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.corpus import image
from bench.debian import run
from bench.measure import Report, Sample, common_options, drop_caches, image_name, interleave
from bench.mount import mounted, store_with
from bench.resolve import walk_paths
from layerfs.api import Image, Store

__all__ = ["kernel_overlay", "main", "unpacked"]

#: Takes the tree's path with a slash and what to look at; returns how many entries were looked at.
Operation = Callable[[bytes, Sequence[bytes]], int]


def _stat(top: bytes, paths: Sequence[bytes]) -> int:
    for path in paths:
        os.lstat(top + path)
    return len(paths)


def _missing(top: bytes, paths: Sequence[bytes]) -> int:
    for path in paths:
        with contextlib.suppress(OSError):
            os.lstat(top + path + b".missing")
    return len(paths)


def _readdir(top: bytes, _paths: Sequence[bytes]) -> int:
    return len(walk_paths(Path(os.fsdecode(top))))


def _read(top: bytes, files: Sequence[bytes]) -> int:
    for path in files:
        descriptor = os.open(top + path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            while os.read(descriptor, 1 << 20):
                pass
        finally:
            os.close(descriptor)
    return len(files)


_OPERATIONS: dict[str, Operation] = {
    "stat of every path": _stat,
    "lookup of a missing name beside every path": _missing,
    "readdir walk": _readdir,
    "open and read every file": _read,
}


def _per_entry(operation: Operation, top: Path, paths: Sequence[bytes]) -> Callable[[], Sample]:
    def once() -> Sample:
        start = time.perf_counter()
        cpu = time.process_time()
        count = operation(os.fsencode(top) + b"/", paths)
        wall = time.perf_counter() - start
        return Sample(wall / count, (time.process_time() - cpu) / count)

    return once


@contextlib.contextmanager
def unpacked(name: str, root: Path) -> Iterator[Path]:
    """The image as a plain directory on the same file system, by umoci."""
    bundle = root / f"plain-{name}"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{image(name).oci}:latest", bundle], check=True, stdout=subprocess.DEVNULL
    )
    yield bundle / "rootfs"


@contextlib.contextmanager
def kernel_overlay(lower: Path, root: Path) -> Iterator[Path]:
    """What a container sees with other tools: overlayfs on an unpacked tree, here of one layer only."""
    upper, work, target = (root / f"overlay-{word}" for word in ("upper", "work", "mnt"))
    for directory in (upper, work, target):
        directory.mkdir()
    run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", target])
    try:
        yield target
    finally:
        run(["umount", target])


def _compare(title: str, trees: dict[str, Path], rounds: int, report: Report, *, cold: bool) -> None:
    """Measure every operation on every tree; the first one is what the others are held against."""
    base = next(iter(trees))
    paths = walk_paths(trees[base])
    random.Random(7).shuffle(paths)
    files = [path for path in paths if stat.S_ISREG((trees[base] / os.fsdecode(path)).lstat().st_mode)]
    for operation_title, operation in _OPERATIONS.items():
        chosen = files if operation is _read else paths
        variants = {name: _per_entry(operation, top, chosen) for name, top in trees.items()}
        if cold:
            variants = {name: _after_dropping_caches(warm) for name, warm in variants.items()}
        else:
            for warm_up in variants.values():
                warm_up()
        samples, failed = interleave(variants, rounds, report.on)
        state = "cold" if cold else "warm"
        report.table(
            f"{title}: {operation_title}, {state}", samples, base=base, failed=failed, unit=("us per entry", 1e6)
        )


def _after_dropping_caches(warm: Callable[[], Sample]) -> Callable[[], Sample]:
    def cold() -> Sample:
        drop_caches()
        return warm()

    return cold


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("storm", __doc__, rounds=5)
    parser.add_argument("--image", default="python-app", type=image_name, help="the image that is compared with ext4")
    parser.add_argument(
        "--deep",
        default="deep-101",
        choices=("deep-101",),
        help="the image of many layers, compared with itself in one",
    )
    parser.add_argument("--warm", action="store_true", help="measure nothing with empty caches")
    options = parser.parse_args(arguments)
    report = Report("storm", vars(options))
    deep, flat = options.deep, f"{options.deep}-flat"
    with store_with([options.image, deep, flat]) as (store, root, images), contextlib.ExitStack() as stack:
        plain = stack.enter_context(unpacked(options.image, root))
        overlay = stack.enter_context(kernel_overlay(plain, root))
        trees = {
            "ext4": plain,
            "kernel overlay on ext4": overlay,
            **_mounts(stack, store, images[options.image], root, "image"),
        }
        for cold in (False,) if options.warm else (False, True):
            _compare(options.image, trees, options.rounds, report, cold=cold)
        one = _mounts(stack, store, images[flat], root, "flat")
        many = _mounts(stack, store, images[deep], root, "deep")
        layers = {f"{key}, 1 layer": top for key, top in one.items()}
        layers |= {f"{key}, {images[deep].layers} layers": top for key, top in many.items()}
        _compare(deep, layers, options.rounds, report, cold=False)
    report.write()


def _mounts(stack: contextlib.ExitStack, store: Store, found: Image, root: Path, prefix: str) -> dict[str, Path]:
    return {
        name: stack.enter_context(mounted(store, found, root / f"{prefix}-{name}", read_only=read_only))
        for name, read_only in (("layerfs read-only", True), ("layerfs writable", False))
    }
