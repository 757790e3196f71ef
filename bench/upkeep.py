"""upkeep: what a store of related images takes on disk, and how long checking, counting and removing take.

The images are three that stand on one Debian. Disk use is what a new file system has less after they came in.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.load import layerfs_command, store_environment
from bench.measure import (
    Report,
    Sample,
    chosen,
    command,
    common_options,
    fresh_filesystem,
    image_name,
    interleave,
    prepare,
    settle,
    shell,
)
from bench.peers import containerd, podman

__all__ = ["main"]

Job = Callable[[], Sample]

#: The image that is removed and brought in again.
_REMOVED = "demo"


class Tool:
    """A tool with storage of its own: how images come in, and what it can be asked for.

    Attributes:
        jobs: what is timed, by name of the table.
    """

    def __init__(self, load: Callable[[CorpusImage], object], jobs: dict[str, Job]) -> None:
        self.load = load
        self.jobs = jobs


@contextmanager
def _layerfs(work: Path) -> Iterator[Tool]:
    environment = store_environment(work)
    tool = layerfs_command()

    def run(*words: str | Path) -> Sample:
        return command([tool, *words], env=environment)

    yield Tool(
        lambda found: run("load", "-q", "-i", found.oci_archive),
        {
            "count": lambda: run("df"),
            "check": lambda: run("check"),
            "collect": lambda: run("gc"),
            "remove": lambda: run("rmi", _REMOVED),
        },
    )


@contextmanager
def _podman(work: Path) -> Iterator[Tool]:
    with podman(work) as tool:
        yield Tool(
            lambda found: command([*tool, "load", "--quiet", "--input", found.docker_archive]),
            {
                "count": lambda: command([*tool, "system", "df"]),
                "collect": lambda: command([*tool, "image", "prune", "--force"]),
                "remove": lambda: command([*tool, "rmi", f"localhost/{_REMOVED}"]),
            },
        )


@contextmanager
def _containerd(work: Path) -> Iterator[Tool]:
    with containerd(work) as (ctr, _):

        def load(found: CorpusImage) -> object:
            name = f"localhost/{found.name}"
            return command([*ctr, "images", "import", "--base-name", name, found.oci_archive])

        yield Tool(load, {"remove": lambda: command([*ctr, "images", "rm", "--sync", f"localhost/{_REMOVED}:latest"])})


_TOOLS = {"layerfs": _layerfs, "podman": _podman, "ctr": _containerd}


def _used(place: Path) -> int:
    settle()
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _archives(found: Sequence[CorpusImage], place: Path) -> Sample:
    """The archives as they are: what a store takes at least that keeps compressed layers and nothing else."""
    for each in found:
        shutil.copyfile(each.oci_archive, place / each.name)
    return Sample(0)


def _occupied(found: Sequence[CorpusImage], make: Callable[[Path], AbstractContextManager[Tool]] | None) -> Job:
    def one() -> Sample:
        with fresh_filesystem() as place:
            before = _used(place)
            if make is None:
                _archives(found, place)
            else:
                with make(place) as tool:
                    for each in found:
                        tool.load(each)
            return Sample(_used(place) - before)

    return one


def _unpacked(found: Sequence[CorpusImage]) -> Job:
    def one() -> Sample:
        with fresh_filesystem() as place:
            before = _used(place)
            for each in found:
                command(["umoci", "unpack", "--image", f"{each.oci}:latest", place / each.name])
            return Sample(_used(place) - before)

    return one


@contextmanager
def _filled(
    make: Callable[[Path], AbstractContextManager[Tool]], found: Sequence[CorpusImage], work: Path
) -> Iterator[Tool]:
    with make(work) as tool:
        for each in found:
            tool.load(each)
        yield tool


def _brought_back(tool: Tool, found: CorpusImage, job: Job) -> Job:
    """Remove an image after it was brought in again, outside the clock."""

    def one() -> Sample:
        tool.load(found)
        settle()
        return job()

    return one


def _digested(place: Path) -> Job:
    """Reading and digesting all layers of our store with a C program: the floor of checking."""
    layers = shlex.quote(str(place / "l/store/layers"))
    return lambda: shell(f"find {layers} -type f -print0 | xargs -0 cat | openssl dgst -sha256")


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("upkeep", __doc__, rounds=5)
    parser.add_argument("--image", action="append", type=image_name, help="demo, python-app and node-like unless given")
    options = parser.parse_args(arguments)
    report = Report("upkeep", vars(options))
    found = [image(name) for name in options.image or ("demo", "python-app", "node-like")]
    disk = {name: _occupied(found, tool) for name, tool in _TOOLS.items()}
    disk |= {"archives, copied": _occupied(found, None), "umoci unpack, each": _unpacked(found)}
    samples, failed = interleave(disk, 1, report.on)
    report.table(f"disk use of {len(found)} images", samples, base="archives, copied", failed=failed, unit=("MB", 1e-6))
    with ExitStack() as stack:
        place = stack.enter_context(fresh_filesystem())
        ready: dict[str, Tool] = {}
        broken: dict[str, str] = {}
        for name, make in chosen(_TOOLS, report.on).items():
            work = place / name[0]
            work.mkdir()
            tool = prepare(stack, name, partial(_filled, make, found, work), broken,
                           needs=None if name == "layerfs" else name)  # fmt: skip
            if tool is not None:
                ready[name] = tool
        removed = next((each for each in found if each.name == _REMOVED), None)
        for title in ("count", "check", "collect", "remove"):
            jobs = {name: tool.jobs[title] for name, tool in ready.items() if title in tool.jobs}
            if title == "remove":
                jobs = {
                    name: _brought_back(ready[name], removed, job) for name, job in jobs.items() if removed is not None
                }
            if title == "check" and "layerfs" in ready:
                jobs["cat, openssl sha256 of the layers"] = _digested(place)
            samples, failed = interleave(jobs, options.rounds)
            report.table(
                f"{title}, {len(found)} images", samples, base="layerfs", failed=failed | broken, unit=("ms", 1e3)
            )
    report.write()
