"""read: the bytes of large files through every mount: in order, here and there, mapped; cold and warm.

Client and server of FUSE may use all CPUs. Bytes are counted, so that a short read is no fast one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.fuse_mounts import layer_directories, mounted_union, union_mounts
from bench.measure import Report, Sample, common_options, drop_caches, image_name, interleave, prepare
from bench.mount import mounted, store_with
from bench.storm import kernel_overlay, unpacked

__all__ = ["main"]

_PIECE = 1 << 20
_PAGE = 4096
_RANDOM = 1_000
#: Of the eight files of the image, so many are read: half a gigabyte.
_FILES = 4

#: Takes a file; returns how many bytes of it were looked at.
Operation = Callable[[Path], int]


def _in_order(path: Path) -> int:
    size = 0
    fd = os.open(path, os.O_RDONLY)
    while piece := os.read(fd, _PIECE):
        size += len(piece)
    os.close(fd)
    return size


def _here_and_there(path: Path) -> int:
    order = random.Random(3)
    fd = os.open(path, os.O_RDONLY)
    pages = os.fstat(fd).st_size // _PAGE
    size = sum(len(os.pread(fd, _PAGE, order.randrange(pages) * _PAGE)) for _ in range(_RANDOM))
    os.close(fd)
    return size


def _mapped(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        return sum(1 for position in range(0, len(memory), _PAGE) if memory[position] >= 0) * _PAGE


_OPERATIONS: dict[str, Operation] = {
    "in order, 1 MiB at a time": _in_order,
    "4 KiB here and there": _here_and_there,
    "mapped, a byte of every page": _mapped,
}


def _sample(operation: Operation, paths: Sequence[Path], expected: int, *, cold: bool) -> Callable[[], Sample]:
    def once() -> Sample:
        if cold:
            drop_caches()
        else:  # just before: what was read a minute ago may be gone again
            for path in paths:
                operation(path)
        start, cpu = time.perf_counter(), time.process_time()
        size = sum(operation(path) for path in paths)
        wall = time.perf_counter() - start
        if size != expected:
            raise RuntimeError(f"{size} bytes were read, not {expected}")
        return Sample(wall / (size >> 20), (time.process_time() - cpu) / (size >> 20))

    return once


def _files(top: Path) -> list[Path]:
    return sorted((top / "data").iterdir())[:_FILES]


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("read", __doc__, rounds=5)
    parser.add_argument("--image", default="big", type=image_name, help="with large files in /data")
    options = parser.parse_args(arguments)
    report = Report("read", vars(options))
    with store_with([options.image]) as (store, root, images), contextlib.ExitStack() as stack:
        found = images[options.image]
        plain = stack.enter_context(unpacked(options.image, root))
        tops = {"ext4": plain, "kernel overlayfs": stack.enter_context(kernel_overlay(plain, root))}
        for name, read_only in (("layerfs, EROFS", True), ("layerfs, EROFS and overlayfs", False)):
            target = root / f"mnt-{len(tops)}"
            tops[name] = stack.enter_context(mounted(store, found, target, read_only=read_only))
        broken: dict[str, str] = {}
        for name, variant in union_mounts(store, found, layer_directories(store, found)).items():
            if name not in ("kernel overlayfs", "layerfs, directories", "layerfs, EROFS and overlayfs"):
                work = root / f"union-{len(tops)}"
                work.mkdir()
                made = prepare(stack, name, partial(mounted_union, variant, work), broken)
                if made is not None:
                    tops[name] = made.target
        for title, operation in _OPERATIONS.items():
            expected = sum(operation(path) for path in _files(plain))
            for cold in (True, False):
                variants = {name: _sample(operation, _files(top), expected, cold=cold) for name, top in tops.items()}
                samples, failed = interleave(variants, options.rounds, report.on)
                failed |= broken
                state = "cold" if cold else "warm"
                report.table(f"{title}, {state}", samples, base="ext4", failed=failed, unit=("ms per MiB", 1e3))
    report.write()
