"""The ways to mount one image that are measured side by side: our union, fuse-overlayfs, overlayfs of the kernel."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.debian import run
from layerfs.api import Image, Store
from layerfs.linux.mount_api import umount
from layerfs.linux.process import wait_for_end
from layerfs.mount.fuse.specification import FuseSpecification
from layerfs.mount.fuse.start import start_fuse
from layerfs.mount.option import MountOptions
from layerfs.mount.overlay import mount_directories, mount_merged
from layerfs.mount.unpacked import unpack_tree, unpacked_directories
from layerfs.store.image import find_image, merged_tree
from layerfs.store.layer import device_paths

__all__ = [
    "Mounted",
    "Variant",
    "count_requests",
    "layer_directories",
    "mount_stack",
    "mounted_union",
    "pinned",
    "union_mounts",
]

#: As other tools mount: set-ID bits and devices of an image work.
_LIFTED = MountOptions(nosuid=False, nodev=False)

_TRACING = Path("/sys/kernel/tracing")


@dataclass
class Mounted:
    """A live mount: where, and the process that serves it, if there is one."""

    target: Path
    pid: int | None


Variant = Callable[[Path, Path, Path], Mounted]


def union_mounts(store: Store, found: Image, directories: list[str]) -> dict[str, Variant]:
    """Return how each file system mounts an image, by name.

    Args:
        store: what the image is in.
        found: the image.
        directories: the same unpacked, top first, for those that take nothing else. unionfs-fuse is only there if it
            is one directory: it has whiteouts of a form of its own.
    """
    record = find_image(store._handle, str(found.id))
    tree_path = store._handle.layout.merged_tree(record.chain_id)
    devices = tuple(device_paths(store._handle, merged_tree(store._handle, record)))

    def image(upper: Path, work: Path, target: Path) -> Mounted:
        wanted = FuseSpecification(target=str(target), tree=tree_path, devices=devices, upper=str(upper),
                                   work=str(work), nosuid=False, nodev=False, allow_other=True)  # fmt: skip
        return Mounted(target, start_fuse(wanted)[1])

    def stacked(upper: Path, work: Path, target: Path) -> Mounted:
        wanted = FuseSpecification(target=str(target), lowers=tuple(directories), upper=str(upper), work=str(work),
                                   nosuid=False, nodev=False, allow_other=True)  # fmt: skip
        return Mounted(target, start_fuse(wanted)[1])

    def fuse_overlayfs(upper: Path, work: Path, target: Path) -> Mounted:
        options = f"lowerdir={':'.join(directories)},upperdir={upper},workdir={work}"
        before = _processes("fuse-overlayfs")
        run(["fuse-overlayfs", "-o", options, target])
        (pid,) = _processes("fuse-overlayfs") - before
        return Mounted(target, pid)

    def kernel(upper: Path, work: Path, target: Path) -> Mounted:
        options = f"lowerdir={':'.join(directories)},upperdir={upper},workdir={work}"
        if len(options) > 4000:
            mount_stack(directories, upper, work, target)
        else:
            run(["mount", "-t", "overlay", "overlay", "-o", options, target])
        return Mounted(target, None)

    def unionfs(upper: Path, _work: Path, target: Path) -> Mounted:
        before = _processes("unionfs")
        branches = f"{upper}=RW:{directories[0]}=RO"
        run(["unionfs", "-o", "cow,allow_other,suid,dev,noinitgroups", branches, target])
        (pid,) = _processes("unionfs") - before
        return Mounted(target, pid)

    def merged(upper: Path, work: Path, target: Path) -> Mounted:
        mount_merged(tree_path, devices, target, upper=upper, work=work, options=_LIFTED)
        return Mounted(target, None)

    every = {"layerfs, FUSE": image, "layerfs, EROFS and overlayfs": merged, "layerfs, directories": stacked,
             "fuse-overlayfs": fuse_overlayfs, "kernel overlayfs": kernel}  # fmt: skip
    return every | ({"unionfs-fuse": unionfs} if len(directories) == 1 and shutil.which("unionfs") else {})


def mount_stack(directories: Sequence[str], upper: Path | None, work: Path | None, target: Path) -> None:
    """Mount overlayfs in the kernel over more directories than mount(2) has room for; without an upper, read-only."""
    mount_directories(directories, target, upper=upper, work=work, read_only=upper is None, options=_LIFTED)


@contextlib.contextmanager
def pinned(cpu: int = 0) -> Iterator[None]:
    """Keep this process, and those that it starts, on one CPU for the time of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def mounted_union(variant: Variant, work: Path, *, keep: bool = False) -> Iterator[Mounted]:
    """A variant mounted in a directory for the time of the block; ``keep`` what was written in it before."""
    work.mkdir(exist_ok=True)
    upper, scratch, target = (work / name for name in ("upper", "work", "mnt"))
    for directory in (upper, scratch, target):
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(exist_ok=True)
    found = variant(upper, scratch, target)
    try:
        yield found
    finally:
        try:
            umount(target)
        except OSError:  # something of a run that failed still uses it
            umount(target, lazy=True)
        if found.pid is not None:
            wait_for_end(found.pid, 20)


@contextlib.contextmanager
def count_requests(target: Path) -> Iterator[Callable[[], int | None]]:
    """Count what the kernel asks of the server of a FUSE mount; the yielded function tells how often so far.

    It tells None where this kernel cannot count. Counting costs each request some 0.2 us.
    """
    if not (_TRACING / "events").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], check=False, capture_output=True)
    instance = _TRACING / "instances" / f"layerfs-bench-{os.getpid()}"
    event = instance / "events/fuse/fuse_request_send"
    try:
        instance.mkdir()
    except OSError:
        yield lambda: None
        return

    def count() -> int:
        total = 0
        for stats in instance.glob("per_cpu/cpu*/stats"):
            fields = dict(line.split(": ", 1) for line in stats.read_text().splitlines())
            total += int(fields["entries"]) + int(fields["overrun"])
        return total

    try:
        (instance / "options/overwrite").write_text("1")
        if event.is_dir():
            (event / "filter").write_text(f"connection == {os.minor(target.stat().st_dev)}")
            (event / "enable").write_text("1")
        yield count if event.is_dir() else lambda: None
    finally:
        if event.is_dir():
            (event / "enable").write_text("0")
        instance.rmdir()


def _processes(name: str) -> set[int]:
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name[:15]:
                found.add(int(pid))
    return found


def layer_directories(store: Store, found: Image, flat: Path | None = None) -> list[str]:
    """Unpack an image's layers to directories of the store, top first, or all of it to the new directory ``flat``."""
    record = find_image(store._handle, str(found.id))
    tree = merged_tree(store._handle, record)
    if flat is not None:
        return [unpack_tree(store._handle, tree, str(flat))]
    return unpacked_directories(store._handle, record, tree)
