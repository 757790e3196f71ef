"""What is done to the mounts that ``fuse`` compares, row by row; all of it is what programs do, through the kernel."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.measure import shell

__all__ = ["ROWS", "SESSIONS", "Session", "Tree"]

_SAMPLE = 100_000
#: Files of the image that each of the four rows changes that copy up or remove; fewer if it has fewer.
_FILES = 2_000
_CREATED = 5_000


@dataclass(frozen=True)
class Tree:
    """What a row works on: the mount and the paths in it, relative, in an order that is random but always the same.

    ``largest`` is the largest file, and its bytes.
    """

    top: bytes
    paths: list[bytes]
    files: list[bytes]
    largest: tuple[bytes, int]

    def share(self, number: int) -> list[bytes]:
        """Return files for one of the rows that change some: each has its own."""
        count = min(_FILES, len(self.files) // 4)
        return self.files[number * count : (number + 1) * count]


@dataclass(frozen=True)
class Row:
    """One line of the table: ``job`` returns how many operations it did; cold ones begin with a new mount."""

    name: str
    job: Callable[[Tree], int]
    cold: bool = False


@dataclass(frozen=True)
class Session:
    """Rows that are measured one after the other on one mount, since each needs what the ones before it leave."""

    rows: tuple[str, ...]
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
        os.unlink(tree.top + b"/new/r%d" % number)
    return _CREATED


def _append(tree: Tree) -> int:
    for path in tree.share(0):
        fd = os.open(tree.top + path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)
    return len(tree.share(0))


def _chmod(tree: Tree) -> int:
    for path in tree.share(1):
        os.chmod(tree.top + path, 0o600)
    return len(tree.share(1))


def _rename_lower(tree: Tree) -> int:
    for path in tree.share(2):
        os.rename(tree.top + path, tree.top + path + b".moved")
    return len(tree.share(2))


def _unlink_lower(tree: Tree) -> int:
    for path in tree.share(3):
        os.unlink(tree.top + path)
    return len(tree.share(3))


def _read_changed(tree: Tree) -> None:
    """Read all that the rows below copy: where a tool has it in the page cache from loading or unpacking is chance."""
    for path in (*(path for number in range(4) for path in tree.share(number)), tree.largest[0]):
        fd = os.open(tree.top + path, os.O_RDONLY)
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


ROWS = {
    "walk-cold": Row("walk with stat, cold", _walk, cold=True),
    "stat-cold": Row("stat of every path, cold", _stat_once, cold=True),
    "read-cold": Row("open and read 4 KiB, cold", _read, cold=True),
    "tar-cold": Row("tar of the tree, cold", _tar, cold=True),
    "imports-cold": Row("python imports numpy, pandas, django, cold", _imports, cold=True),
    "walk": Row("walk with stat, warm", _walk),
    "stat": Row("100,000 random stats, warm", _stat),
    "missing-again": Row("a missing name, repeated", _missing_again),
    "missing": Row("missing names, all different", _missing_different),
    "read": Row("open and read 4 KiB, warm", _read),
    "tar": Row("tar of the tree, warm", _tar),
    "write-big": Row("write 1 GiB, per MiB", _write_big),
    "read-big": Row("read 1 GiB, cold, per MiB", _read_big, cold=True),
    "read-random": Row("random reads of 4 KiB, cold", _read_random, cold=True),
    "create": Row("create and write a file", _create),
    "rename-new": Row("rename a new file", _rename_new),
    "unlink-new": Row("unlink a new file", _unlink_new),
    "append": Row("copy-up of a file by append", _append),
    "chmod": Row("copy-up of a file by chmod", _chmod),
    "rename": Row("rename a file of the image", _rename_lower),
    "unlink": Row("unlink a file of the image", _unlink_lower),
    "copy-big": Row("copy-up of the largest file, per MiB", _copy_up_big),
    "git-cold": Row("git status, cold", _git("status"), cold=True),
    "git": Row("git status, warm", _git("status")),
    "compile": Row("compile a C file", _compile),
}

#: In this order. Those that write get a new file system: one where many files were removed is slower.
SESSIONS = (
    Session(("walk-cold", "stat-cold", "read-cold", "tar-cold", "imports-cold")),
    Session(("walk", "stat", "missing-again", "missing"), before=_walk),
    Session(("read", "tar"), before=_tar),
    Session(("write-big", "read-big", "read-random"), writes=True),
    Session(("create", "rename-new", "unlink-new"), writes=True),
    Session(("append", "chmod", "rename", "unlink", "copy-big"), before=_read_changed, writes=True),
    Session(("git-cold", "git"), before=_make_repository, writes=True),
    Session(("compile",), writes=True),
)
