"""fuse: one image through layerfs, by FUSE and by the kernel, through fuse-overlayfs, and through overlayfs alone.

Every row is measured with client and server pinned to one CPU, where a request costs what it computes; some also
without, and all with ``--free``, where waking an idle virtual CPU costs more than most requests. CPU time is that of
client and server together. A row that changes something starts on a new file system.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shlex
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from bench.measure import (
    Report,
    Sample,
    chosen,
    common_options,
    drop_caches,
    fresh_directory,
    fresh_filesystem,
    image_name,
    interleave,
    prepare,
    shell,
)
from bench.mount import store_with
from layerfs.linux.mount_api import umount

__all__ = ["main"]

_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE = 100_000
_FILES = 2_000
_CREATED = 5_000


_Paths = tuple[list[bytes], list[bytes], tuple[bytes, int]]


@dataclass(frozen=True)
class Tree:
    """What a row works on: the mount and the paths in it, relative, in an order that is random but always the same.

    ``largest`` is the largest file, and its bytes.
    """

    top: bytes
    paths: list[bytes]
    files: list[bytes]
    largest: tuple[bytes, int]


@dataclass(frozen=True)
class Row:
    """One line of the table: ``job`` returns how many operations it did; cold ones begin with empty caches.

    Those that write get a new file system for the upper directory: one where many files were removed is slower.
    """

    name: str
    job: Callable[[Tree], int]
    cold: bool = False
    before: Callable[[Tree], object] | None = None
    writes: bool = False


def _walk(tree: Tree) -> int:
    count = 0
    pending = [tree.top]
    while pending:
        directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                count += 1
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(directory + b"/" + os.fsencode(entry.name))
    return count


def _stat(tree: Tree) -> int:
    chosen = random.Random(2).choices(tree.paths, k=_SAMPLE)
    for path in chosen:
        os.lstat(tree.top + path)
    return len(chosen)


def _stat_once(tree: Tree) -> int:
    for path in tree.paths:
        os.lstat(tree.top + path)
    return len(tree.paths)


def _missing_again(tree: Tree) -> int:
    directories = [os.path.dirname(path) + b"/missing" for path in tree.paths[:200]]
    for _ in range(_SAMPLE // len(directories)):
        for path in directories:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(tree.top + path)
    return _SAMPLE


def _missing_different(tree: Tree) -> int:
    names = [os.path.dirname(path) + b"/missing%d" % number for number, path in enumerate(tree.paths)]
    for path in names:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(tree.top + path)
    return len(names)


def _read(tree: Tree) -> int:
    for path in tree.files:
        fd = os.open(tree.top + path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
    return len(tree.files)


def _write_big(tree: Tree) -> int:
    block = os.urandom(1 << 20)
    fd = os.open(tree.top + b"/big", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(1024):
        os.write(fd, block)
    os.close(fd)
    return 1024


def _read_big(tree: Tree) -> int:
    fd = os.open(tree.top + b"/big", os.O_RDONLY)
    size = 0
    while piece := os.read(fd, 1 << 20):
        size += len(piece)
    os.close(fd)
    if size != 1 << 30:
        raise RuntimeError(f"{size} bytes were read of 1 GiB")
    return 1024


def _read_random(tree: Tree) -> int:
    order = random.Random(3)
    fd = os.open(tree.top + b"/big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(10_000):
        os.pread(fd, 4096, order.randrange(1 << 18) << 12)
    os.close(fd)
    return 10_000


def _create(tree: Tree) -> int:
    os.mkdir(tree.top + b"/new")
    for number in range(_CREATED):
        fd = os.open(tree.top + b"/new/%d" % number, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, b"x" * 100)
        os.close(fd)
    return _CREATED


def _rename_new(tree: Tree) -> int:
    for number in range(_CREATED):
        os.rename(tree.top + b"/new/%d" % number, tree.top + b"/new/r%d" % number)
    return _CREATED


def _unlink_new(tree: Tree) -> int:
    for number in range(_CREATED):
        os.unlink(tree.top + b"/new/%d" % number)
    return _CREATED


def _append(tree: Tree) -> int:
    for path in tree.files[:_FILES]:
        fd = os.open(tree.top + path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)
    return _FILES


def _chmod(tree: Tree) -> int:
    for path in tree.files[:_FILES]:
        os.chmod(tree.top + path, 0o600)
    return _FILES


def _rename_lower(tree: Tree) -> int:
    for path in tree.files[:_FILES]:
        os.rename(tree.top + path, tree.top + path + b".moved")
    return _FILES


def _unlink_lower(tree: Tree) -> int:
    for path in tree.files[:_FILES]:
        os.unlink(tree.top + path)
    return _FILES


def _read_largest(tree: Tree) -> None:
    fd = os.open(tree.top + tree.largest[0], os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def _copy_up_big(tree: Tree) -> int:
    path, size = tree.largest
    fd = os.open(tree.top + path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")  # opening it need not copy it
    os.close(fd)
    return max(1, size >> 20)


def _tar(tree: Tree) -> int:
    # Through a pipe: tar reads nothing when its archive is /dev/null.
    shell(f"tar -C {shlex.quote(os.fsdecode(tree.top))} --one-file-system -cf - . | cat >/dev/null")
    return 1


def _imports(tree: Tree) -> int:
    code = "import numpy, pandas, django.db.models"
    found = subprocess.run(
        ["chroot", tree.top, "/opt/venv/bin/python3", "-c", code], check=False, capture_output=True, text=True
    )
    if found.returncode:
        raise RuntimeError(found.stderr[-500:])
    return 1


def _git(*words: str) -> Callable[[Tree], int]:
    def job(tree: Tree) -> int:
        root = os.fsdecode(tree.top) + "/usr/lib"
        environment = {"HOME": "/nonexistent", "GIT_OPTIONAL_LOCKS": "0", "PATH": os.environ["PATH"]}
        subprocess.run(["git", "-c", "safe.directory=*", "-c", "core.preloadIndex=false", "-C", root, *words],
                       check=True, stdout=subprocess.DEVNULL, env=environment)  # fmt: skip
        return 1

    return job


def _make_repository(tree: Tree) -> None:
    _git("init", "-q")(tree)
    _git("add", "python3")(tree)


def _compile(tree: Tree) -> int:
    top = tree.top + b"/src"
    os.mkdir(top)
    for number in range(30):
        headers = "".join(f"#include <{name}.h>\n" for name in ("stdio", "stdlib", "string"))
        text = f"{headers}int f{number}(int x) {{ return x + {number}; }}\n"
        Path(os.fsdecode(top), f"f{number}.c").write_text(text)
        subprocess.run(["gcc", "-c", f"f{number}.c"], cwd=top, check=True)
    return 30


# Copying up begins with the content in the page cache: where a tool has it from loading or unpacking is chance.
ROWS = {
    "walk-cold": Row("walk with stat, cold", _walk, cold=True),
    "walk": Row("walk with stat, warm", _walk, before=_walk),
    "stat-cold": Row("stat of every path, cold", _stat_once, cold=True),
    "stat": Row("100,000 random stats, warm", _stat, before=_walk),
    "missing-again": Row("a missing name, repeated", _missing_again, before=_walk),
    "missing": Row("missing names, all different", _missing_different, before=_walk),
    "read-cold": Row("open and read 4 KiB, cold", _read, cold=True),
    "read": Row("open and read 4 KiB, warm", _read, before=_read),
    "write-big": Row("write 1 GiB, per MiB", _write_big, writes=True),
    "read-big": Row("read 1 GiB, cold, per MiB", _read_big, cold=True, before=_write_big, writes=True),
    "read-random": Row("random reads of 4 KiB, cold", _read_random, cold=True, before=_write_big, writes=True),
    "create": Row("create and write a file", _create, writes=True),
    "rename-new": Row("rename a new file", _rename_new, before=_create, writes=True),
    "unlink-new": Row("unlink a new file", _unlink_new, before=_create, writes=True),
    "append": Row("copy-up of a file by append", _append, before=_read, writes=True),
    "chmod": Row("copy-up of a file by chmod", _chmod, before=_read, writes=True),
    "copy-big": Row("copy-up of the largest file, per MiB", _copy_up_big, before=_read_largest, writes=True),
    "rename": Row("rename a file of the image", _rename_lower, before=_read, writes=True),
    "unlink": Row("unlink a file of the image", _unlink_lower, before=_walk, writes=True),
    "tar-cold": Row("tar of the tree, cold", _tar, cold=True),
    "tar": Row("tar of the tree, warm", _tar, before=_tar),
    "imports-cold": Row("python imports numpy, pandas, django, cold", _imports, cold=True),
    "git-cold": Row("git status, cold", _git("status"), cold=True, before=_make_repository),
    "git": Row("git status, warm", _git("status"), before=_make_repository),
    "compile": Row("compile a C file", _compile, writes=True),
}


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


def _measure(row: Row, variant: Variant, root: Path, paths: _Paths, *, pin: bool) -> Sample:
    place = fresh_filesystem(4 << 30) if row.writes else fresh_directory(root)
    # Pinned before the server starts, so that all its threads are.
    with place as scratch, pinned() if pin else contextlib.nullcontext():
        return _measure_in(scratch, row, variant, paths)


def _measure_in(scratch: Path, row: Row, variant: Variant, paths: _Paths) -> Sample:
    tree = Tree(os.fsencode(scratch / "mnt"), *paths)
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(mounted_union(variant, scratch))
        if row.before is not None:
            row.before(tree)
        if row.cold:
            stack.close()
            found = stack.enter_context(mounted_union(variant, scratch, keep=True))
            drop_caches()
        else:
            os.sync()
        requests = stack.enter_context(count_requests(found.target)) if found.pid is not None else lambda: None
        before = requests()
        server, client, start = _cpu_of(found.pid), _cpu_of_client(), time.perf_counter()
        count = row.job(tree)
        wall = time.perf_counter() - start
        spent = _cpu_of_client() - client + _cpu_of(found.pid) - server
        after = requests()
        peak = 0
        if found.pid is not None:
            status = Path(f"/proc/{found.pid}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    extra = {} if before is None or after is None else {"requests": (after - before) / count}
    return Sample(wall / count, spent / count, peak, extra)


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
    rows = [(key, not options.free) for key in options.rows or ("lookups", *ROWS)]
    if options.rows is None and not options.free:
        rows += [(key, False) for key in _ALSO_FREE]
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
        store.umount(mount.target)
        print(f"{len(paths[0])} entries, {len(directories)} directories stacked")
        for key, pin in rows:
            if key == "lookups":
                _compare_lookups(variants, root, options.rounds, report)
                continue
            row = ROWS[key]

            def one(variant: Variant, row: Row = row, pin: bool = pin) -> Callable[[], Sample]:
                return lambda: _measure(row, variant, root, paths, pin=pin)

            samples, failed = interleave({name: one(variant) for name, variant in variants.items()}, options.rounds)
            base = "fuse-overlayfs" if "fuse-overlayfs" in samples else next(iter(samples), "")
            title = f"{found.layers} layers: {row.name}{'' if pin else ', not pinned'}"
            report.table(title, samples, base=base, failed=failed, unit=("µs", 1e6))
    report.write()
