"""fuse: one image through layerfs, by FUSE and by the kernel, through fuse-overlayfs, and through overlayfs alone.

Every row is measured with client and server pinned to one CPU, where a request costs what it computes; some also
without, and all with ``--free``, where waking an idle virtual CPU costs more than most requests. CPU time is that of
client and server together. Rows that need each other share a mount; those that change something start on a new file
system.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.debian import run
from bench.fuse_mounts import (
    Mounted,
    Variant,
    count_requests,
    layer_directories,
    mounted_union,
    pinned,
    union_mounts,
)
from bench.fuse_rows import ROWS, SESSIONS, Session, Tree
from bench.measure import (
    Report,
    Sample,
    attempt,
    chosen,
    common_options,
    drop_caches,
    fresh_directory,
    fresh_filesystem,
    image_name,
    interleave,
    prepare,
    turns,
)
from bench.mount import store_with
from layerfs.linux.mount_api import umount

__all__ = ["main"]

_TICK = os.sysconf("SC_CLK_TCK")

_Paths = tuple[list[bytes], list[bytes], tuple[bytes, int]]

#: Rows that are measured without pinning as well, which every request pays for with waking an idle CPU.
_ALSO_FREE = ("walk-cold", "stat-cold", "missing", "read", "create")


def _rows(words: str) -> list[str]:
    found = [word.strip() for word in words.split(",") if word.strip()]
    for word in found:
        if word != "lookups" and word not in ROWS:
            raise argparse.ArgumentTypeError(f"no row {word!r}")
    return found


def _cpu_of(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _cpu_of_client() -> float:
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _session(
    session: Session, variant: Variant, root: Path, paths: _Paths, failed: dict[str, str], *, pin: bool
) -> dict[str, Sample]:
    """Measure the rows of a session on one mount; what a row fails with is noted, and ends the session."""
    place = fresh_filesystem(4 << 30) if session.writes else fresh_directory(root)
    samples: dict[str, Sample] = {}
    # Pinned before the server starts, so that all its threads are.
    with place as scratch, pinned() if pin else contextlib.nullcontext(), contextlib.ExitStack() as stack:
        tree = Tree(os.fsencode(scratch / "mnt"), *paths)
        found = stack.enter_context(mounted_union(variant, scratch))
        if session.before is not None:
            session.before(tree)
        for key in session.rows:
            if ROWS[key].cold:
                stack.close()
                found = stack.enter_context(mounted_union(variant, scratch, keep=True))
                drop_caches()
            else:
                os.sync()
            sample = attempt(partial(_sample, key, tree, found), key, failed)
            if sample is None:
                break
            samples[key] = sample
    return samples


def _sample(key: str, tree: Tree, found: Mounted) -> Sample:
    with count_requests(found.target) if found.pid is not None else contextlib.nullcontext(lambda: None) as requests:
        before = requests()
        server, client, start = _cpu_of(found.pid), _cpu_of_client(), time.perf_counter()
        count = ROWS[key].job(tree)
        wall = time.perf_counter() - start
        spent = _cpu_of_client() - client + _cpu_of(found.pid) - server
        after = requests()
    peak = 0
    if found.pid is not None:
        status = Path(f"/proc/{found.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    extra = {} if before is None or after is None else {"requests": (after - before) / count}
    return Sample(wall / count, spent / count, peak, extra)


def _compare_session(
    session: Session, wanted: Collection[str], variants: dict[str, Variant], place: tuple[Path, _Paths], rounds: int,
    report: Report, title: Callable[[str], str], *, pin: bool,
) -> None:  # fmt: skip
    samples: dict[str, dict[str, list[Sample]]] = {key: {} for key in session.rows}
    failed: dict[str, dict[str, str]] = {name: {} for name in variants}
    broken: set[str] = set()
    for _, name in turns(variants, broken, rounds):
        run = partial(_session, session, variants[name], *place, failed[name], pin=pin)
        for key, sample in (attempt(run, session.rows[0], failed[name]) or {}).items():
            samples[key].setdefault(name, []).append(sample)
        if failed[name]:
            broken.add(name)
    for key in session.rows:
        if key in wanted:
            said = {name: found[key] for name, found in failed.items() if key in found}
            rows = {name: samples[key][name] for name in variants if name in samples[key]}
            base = "fuse-overlayfs" if "fuse-overlayfs" in rows else next(iter(rows), "")
            report.table(title(ROWS[key].name), rows, base=base, failed=said, unit=("µs", 1e6))


@contextlib.contextmanager
def _null_server(root: Path) -> Iterator[Mounted]:
    """A C server that knows no name: what a lookup costs at least."""
    program, target = root / "null_server", root / "null"
    target.mkdir(exist_ok=True)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
    ).stdout.split()
    run(["gcc", "-O2", "-o", program, Path(__file__).with_name("null_server.c"), *flags])
    with subprocess.Popen([program, target]) as process:
        while not target.is_mount():
            time.sleep(0.01)
        try:
            yield Mounted(target, process.pid)
        finally:
            umount(target)


def _lookups(mounted: Mounted) -> Sample:
    """Look up names that are missing and different each time."""
    count = 30_000
    number = random.Random().randrange(1 << 60)
    paths = [os.fsencode(mounted.target) + b"/%x" % (number + step) for step in range(count)]
    start, spent = time.perf_counter(), _cpu_of_client() + _cpu_of(mounted.pid)
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)
    wall = time.perf_counter() - start
    return Sample(wall / count, (_cpu_of_client() + _cpu_of(mounted.pid) - spent) / count)


def _compare_lookups(variants: dict[str, Variant], root: Path, rounds: int, report: Report) -> None:
    """Compare an uncached lookup with that of the null server."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinned())
        mounted: dict[str, Mounted] = {}
        broken: dict[str, str] = {}
        for name, make in {
            "null C server": partial(_null_server, root),
            **{
                name: partial(mounted_union, variant, root / f"lookup-{number}")
                for number, (name, variant) in enumerate(variants.items())
            },
        }.items():
            if (made := prepare(stack, name, make, broken)) is not None:
                mounted[name] = made

        def one(found: Mounted) -> Callable[[], Sample]:
            return lambda: _lookups(found)

        samples, failed = interleave({name: one(found) for name, found in mounted.items()}, rounds)
    report.table("an uncached lookup", samples, base="null C server", failed=failed | broken, unit=("µs", 1e6))


def _paths(directory: Path) -> _Paths:
    """List a mounted image: all paths, regular files that are not empty and have one link, and the largest of these."""
    paths, files = [], []
    largest = (b"", 0)
    for top, directories, names in os.walk(os.fsencode(directory)):
        base = top[len(os.fsencode(directory)) :]
        paths += [base + b"/" + name for name in directories + names]
        for name in names:
            status = os.lstat(top + b"/" + name)
            if stat.S_ISREG(status.st_mode) and status.st_size and status.st_nlink == 1:
                files.append(base + b"/" + name)
                largest = max(largest, (base + b"/" + name, status.st_size), key=lambda each: each[1])
    order = random.Random(1)
    order.shuffle(paths)
    order.shuffle(files)
    return paths, files, largest


def _title(layers: int, name: str, *, pinned: bool) -> str:
    return f"{layers} layers: {name}{'' if pinned else ', not pinned'}"


def main(arguments: list[str]) -> None:
    """Measure."""
    parser = common_options("fuse", __doc__, rounds=5)
    parser.add_argument("--image", default="python-app", type=image_name)
    parser.add_argument("--rows", type=_rows, help=f"comma-separated, all unless given: lookups, {', '.join(ROWS)}")
    parser.add_argument("--directories", action="store_true", help="also our own over directories, not the image")
    parser.add_argument("--flat", action="store_true", help="give the others the image as one directory")
    parser.add_argument("--free", action="store_true", help="do not pin client and server to one CPU")
    options = parser.parse_args(arguments)
    report = Report("fuse", vars(options))
    wanted = set(options.rows or ("lookups", *ROWS))
    with store_with([options.image]) as (store, root, images):
        found = images[options.image]
        directories = layer_directories(store, found, root / "flat" if options.flat else None)
        variants = chosen(union_mounts(store, found, directories), options.on)
        if not options.directories:
            variants.pop("layerfs, directories", None)
        mountpoint = root / "look"
        mountpoint.mkdir()
        mount = store.mount(found, mountpoint, read_only=True)
        paths = _paths(mountpoint)
        has_python = (mountpoint / "opt/venv/bin/python3").exists()
        store.umount(mount.target)
        print(f"{len(paths[0])} entries, {len(directories)} directories stacked")
        if "lookups" in wanted:
            _compare_lookups(variants, root, options.rounds, report)
        rounds = [(wanted, not options.free)]
        if options.rows is None and not options.free:
            rounds.append((set(_ALSO_FREE), False))
        for keys, pin in rounds:
            for session in SESSIONS:
                rows = tuple(key for key in session.rows if key != "imports-cold" or has_python)
                # Each row needs those before it.
                last = max((place for place, key in enumerate(rows) if key in keys), default=-1)
                if last >= 0:
                    title = partial(_title, found.layers, pinned=pin)
                    part = replace(session, rows=rows[: last + 1])
                    _compare_session(part, keys, variants, (root, paths), options.rounds, report, title, pin=pin)
    report.write()
