"""profile: where the time of one job goes, as a flame graph, by py-spy.

The page is ``bench/results/profile-JOB.svg``. Frames of C code (``--native``) show inflating, digesting and system
calls; without them the function of Python that called them is the last one. ``--table`` prints those and draws nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.changes import change
from bench.corpus import CorpusImage, image
from bench.load import layerfs_command, store_environment
from bench.measure import command, drop_caches, fresh_filesystem, warm
from bench.resolve import walk_paths
from bench.results_file import RESULTS

__all__ = ["main"]

#: Prepares a job on an image, in a directory, with an environment; returns the words of the command to look at.
Job = Callable[[CorpusImage, Path, dict[str, str]], list[str]]


def _load(found: CorpusImage, _work: Path, _environment: dict[str, str]) -> list[str]:
    warm(found.oci_archive)
    return [layerfs_command(), "load", "--quiet", "--input", str(found.oci_archive)]


def _loaded(found: CorpusImage, environment: dict[str, str]) -> str:
    """Load an image; return the program that did."""
    command([layerfs_command(), "load", "--quiet", "--input", found.oci_archive], env=environment)
    return layerfs_command()


def _mount(found: CorpusImage, work: Path, environment: dict[str, str]) -> list[str]:
    """A hundred mounts and unmounts in one process: one is over before the profiler has looked."""
    _loaded(found, environment)
    (work / "mnt").mkdir()
    code = (
        "import sys\nfrom layerfs.api import Store\nroot, run, name, target = sys.argv[1:]\n"
        "with Store.open(root, runroot=run) as store:\n    for _ in range(100):\n"
        "        store.umount(store.mount(name, target, read_only=True).target)\n"
    )
    root, run = environment["LAYERFS_ROOT"], environment["LAYERFS_RUNROOT"]
    return [sys.executable, "-c", code, root, run, found.name, str(work / "mnt")]


def _resolve(found: CorpusImage, _work: Path, environment: dict[str, str]) -> list[str]:
    """Every path of the image, ten times."""
    _loaded(found, environment)
    code = (
        "import sys\nfrom layerfs.api import Store\nroot, run, name = sys.argv[1:]\n"
        "with Store.open(root, runroot=run) as store, store.tree(name) as tree:\n"
        "    paths = [path for path, _, _ in tree.walk()]\n    for _ in range(10):\n"
        "        for path in paths:\n            tree.resolve(path, follow=False)\n"
    )
    return [sys.executable, "-c", code, environment["LAYERFS_ROOT"], environment["LAYERFS_RUNROOT"], found.name]


def _diff(found: CorpusImage, work: Path, environment: dict[str, str]) -> list[str]:
    tool = _loaded(found, environment)
    (work / "mnt").mkdir()
    command([tool, "mount", found.name, work / "mnt", "--name", "box"], env=environment)
    change(work / "mnt")
    command([tool, "umount", "box"], env=environment)
    return [tool, "diff", "box"]


_JOBS: dict[str, Job] = {"load": _load, "mount": _mount, "lookup": _resolve, "diff": _diff}


def _fuse(found: CorpusImage, work: Path, environment: dict[str, str], record: Callable[[list[str]], None]) -> None:
    """The server of a FUSE mount while its whole tree is walked ten times from empty caches."""
    tool = _loaded(found, environment)
    (work / "mnt").mkdir()
    command([tool, "mount", "--backend", "fuse", "--read-only", found.name, work / "mnt"], env=environment)
    try:
        listed = subprocess.run([tool, "mount", "--format", "json"], env=environment, check=True, capture_output=True)
        pid = next(row["pid"] for row in json.loads(listed.stdout) if row.get("pid"))
        walker = os.fork()
        if not walker:
            for _ in range(10):
                drop_caches()
                for path in walk_paths(work / "mnt"):
                    os.lstat(os.path.join(os.fsencode(work / "mnt"), path))
            os._exit(0)
        record(["--pid", str(pid), "--duration", "20"])
        os.waitpid(walker, 0)
    finally:
        command([tool, "umount", work / "mnt"], env=environment)


def _heaviest(raw: Path) -> Iterator[str]:
    """Yield what most samples ended in, of a file with one stack and its count per line."""
    found: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frame = stack.rpartition(";")[2]
        # A place in a library without symbols says no more than the library.
        found[re.sub(r"^0x[0-9a-f]+ ", "", frame)] += int(count)
    total = sum(found.values())
    for frame, samples in found.most_common(20):
        yield f"{samples / total:6.1%}  {frame}"


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench profile", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("job", choices=[*_JOBS, "fuse"])
    parser.add_argument("--image", default="python-app")
    parser.add_argument("--table", action="store_true", help="print where most samples ended, draw nothing")
    parser.add_argument("--native", action="store_true", help="also frames of C code")
    options = parser.parse_args(arguments)
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        parser.error(f"py-spy is not installed beside {sys.executable}: make setup, or pip install py-spy")
    RESULTS.mkdir(exist_ok=True)
    with fresh_filesystem() as work, tempfile.TemporaryDirectory() as scratch:
        environment = store_environment(work)
        raw, page = Path(scratch) / "raw", RESULTS / f"profile-{options.job}.svg"
        output = ["--format", "raw", "--output", str(raw)] if options.table else ["--output", str(page)]

        def record(words: list[str]) -> None:
            native = ["--native"] if options.native else []
            subprocess.run(
                [str(spy), "record", "--rate", "400", "--threads", *native, *output, *words], check=True,
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

        found = image(options.image)
        if options.job == "fuse":
            _fuse(found, work, environment, record)
        else:
            record(["--", *_JOBS[options.job](found, work, environment)])
        print("\n".join(_heaviest(raw)) if options.table else page)
    return 0
