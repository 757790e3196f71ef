"""memory: what containers of related images take of the page cache, and what servers of FUSE mounts take themselves.

Ten images stand on one Debian, each with a layer of its own; a container of each reads all its files, one after the
other, from empty caches. What the kernel then keeps is what it has more than before: pages of files and reclaimable
slabs. Peers unpack a layer once, and containers share its pages; each of our mounts through EROFS or FUSE has its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.fuse_mounts import layer_directories, mounted_union, union_mounts
from bench.load import layerfs_command, store_environment
from bench.measure import (
    Report,
    Sample,
    chosen,
    command,
    common_options,
    drop_caches,
    fresh_filesystem,
    image_name,
    interleave,
    output,
)
from bench.mount import store_with
from bench.peers import containerd, podman
from bench.resolve import walk_paths
from bench.synthetic import files_layer, stack_on

__all__ = ["main"]

_CONTAINERS = 10


def _meminfo() -> int:
    """Bytes that the kernel keeps and could let go: pages of files, and slabs."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("Cached", "SReclaimable")) * 1024


def _read_all(top: Path) -> None:
    for path in walk_paths(top):
        full = os.path.join(os.fsencode(top), path)
        if os.path.isfile(full) and not os.path.islink(full):
            with open(full, "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


@contextmanager
def _layerfs(layout: Path, names: Sequence[str], work: Path, *options: str) -> Iterator[list[Path]]:
    environment = store_environment(work)
    tool = layerfs_command()
    command([tool, "load", "-q", "-i", layout], env=environment)
    tops = []
    with ExitStack() as stack:
        for name in names:
            top = work / f"mnt-{name}"
            top.mkdir()
            command([tool, "mount", *options, "--name", name, f"localhost/app:{name}", top], env=environment)
            stack.callback(command, [tool, "umount", name], env=environment)
            tops.append(top)
        yield tops


@contextmanager
def _podman(layout: Path, names: Sequence[str], work: Path) -> Iterator[list[Path]]:
    with podman(work) as tool, ExitStack() as stack:
        stack.callback(command, [*tool, "umount", "--all"])
        tops = []
        for name in names:
            image_name = f"localhost/app:{name}"
            # Not by podman pull oci:, which makes a name of the path, and refuses one like ~/.cache.
            storage = f"containers-storage:[overlay@{work}/root+{work}/run]{image_name}"
            command(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:{image_name}", storage])
            made = output([*tool, "create", image_name, "sh"])
            tops.append(Path(output([*tool, "mount", made])))
        yield tops


@contextmanager
def _containerd(layout: Path, names: Sequence[str], work: Path) -> Iterator[list[Path]]:
    with containerd(work) as (ctr, _), ExitStack() as stack:
        archive = work / "images.tar"
        command(["tar", "-C", layout, "-cf", archive, "."])
        command([*ctr, "images", "import", archive])
        tops = []
        for name in names:
            top = work / f"mnt-{name}"
            top.mkdir()
            command([*ctr, "images", "mount", "--rw", f"localhost/app:{name}", top])
            stack.callback(command, ["umount", top])
            tops.append(top)
        archive.unlink()
        yield tops


_TOOLS: dict[str, Callable[[Path, Sequence[str], Path], contextlib.AbstractContextManager[list[Path]]]] = {
    "layerfs, EROFS and overlayfs": _layerfs,
    "layerfs, --lower dirs": lambda layout, names, work: _layerfs(layout, names, work, "--lower", "dirs"),
    "layerfs, FUSE": lambda layout, names, work: _layerfs(layout, names, work, "--backend", "fuse"),
    "podman mount": _podman,
    "ctr images mount": _containerd,
}


def _page_cache(found: CorpusImage, report: Report, rounds: int) -> None:
    names = [f"app-{number}" for number in range(_CONTAINERS)]
    own = [files_layer([(f"srv/{name}/main.py", b"print()\n" * 4096)]) for name in names]
    with fresh_filesystem() as place:
        layout = place / "layout"
        stack_on(found.oci, layout, {f"localhost/app:{name}": layer for name, layer in zip(names, own, strict=True)})

        def one(name: str) -> Callable[[], Sample]:
            def run() -> Sample:
                with fresh_filesystem() as root, _TOOLS[name](layout, names, root) as tops:
                    drop_caches()
                    before = _meminfo()
                    _read_all(tops[0])
                    first = _meminfo() - before
                    for top in tops[1:]:
                        _read_all(top)
                    return Sample(_meminfo() - before, extra={"MB of the first": first / 1e6})

            return run

        samples, failed = interleave({name: one(name) for name in _TOOLS}, rounds, report.on)
    report.table(
        f"page cache of {_CONTAINERS} containers on {found.name}", samples, base="layerfs, EROFS and overlayfs",
        failed=failed, unit=("MB", 1e-6),
    )  # fmt: skip


def _private(pid: int) -> int:
    """Bytes that a process alone has."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) * 1024


def _servers(name: str, report: Report, rounds: int) -> None:
    with store_with([name]) as (store, root, images):
        found = images[name]
        variants = union_mounts(store, found, layer_directories(store, found))

        def one(key: str) -> Callable[[], Sample]:
            def run() -> Sample:
                work = root / "server"
                work.mkdir(exist_ok=True)
                with mounted_union(variants[key], work) as top:
                    pid = top.pid
                    assert pid is not None
                    fresh = _private(pid)
                    for path in walk_paths(top.target):
                        os.lstat(os.path.join(os.fsencode(top.target), path))
                    walked = _private(pid)
                    drop_caches()
                    time.sleep(0.5)  # forgets come by themselves
                    return Sample(walked, extra={"MB at first": fresh / 1e6, "MB when forgotten": _private(pid) / 1e6})

            return run

        chosen_ones = {
            key: one(key) for key in variants if key not in ("kernel overlayfs", "layerfs, EROFS and overlayfs")
        }
        samples, failed = interleave(chosen(chosen_ones, report.on), rounds)
        report.table(
            f"private memory of the server, {name} walked",
            samples,
            base="layerfs, FUSE",
            failed=failed,
            unit=("MB", 1e-6),
        )


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("memory", __doc__, rounds=5)
    parser.add_argument(
        "--image", default="demo", type=image_name, help="what the containers' images stand on (default: demo)"
    )
    parser.add_argument(
        "--walked", default="python-app", type=image_name, help="what servers show (default: python-app)"
    )
    options = parser.parse_args(arguments)
    report = Report("memory", vars(options))
    _page_cache(image(options.image), report, options.rounds)
    _servers(options.walked, report, options.rounds)
    report.write()
