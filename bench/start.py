"""start: how long until something runs: the tools by themselves, and a program inside an image, to its first output.

A peer makes a container, its namespaces and its mount, and runs the program in it; we mount, enter with chroot, unmount
and remove the container, since running is not what we do. ``cold`` begins with empty caches. CPU time of a program in
an image is all that the machine spent meanwhile: daemons, shims and servers that are no children do much of the work.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.corpus import CorpusImage, image
from bench.load import layerfs_command, store_environment
from bench.machine import cpu_seconds
from bench.measure import (
    Report,
    Sample,
    command,
    common_options,
    drop_caches,
    fresh_filesystem,
    image_name,
    interleave,
    output,
    prepare,
)
from bench.peers import containerd, podman

__all__ = ["main"]

#: podman raises limits above what a machine may allow, and then fails.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")

Job = Callable[[], Sample]


def _tools(empty: Path) -> dict[str, Job]:
    program, python = layerfs_command(), sys.executable
    words = {
        "python -c pass": [python, "-c", "pass"],
        "python -c 'import click'": [python, "-c", "import click"],
        "layerfs --version": [program, "--version"],
        "layerfs --help": [program, "--help"],
        "layerfs images": [program, "--root", str(empty), "images"],
        "podman --version": ["podman", "--version"],
        "podman images": ["podman", "images"],
        "skopeo --version": ["skopeo", "--version"],
        "umoci --version": ["umoci", "--version"],
        "ctr --version": ["ctr", "--version"],
    }
    return {name: partial(command, line) for name, line in words.items() if shutil.which(line[0])}


@contextmanager
def _layerfs(found: CorpusImage, work: Path, program: Sequence[str]) -> Iterator[dict[str, Job]]:
    environment = {**store_environment(work), "PATH": os.environ["PATH"]}
    tool = layerfs_command()
    command([tool, "load", "-q", "-i", found.oci_archive], env=environment)
    target = work / "target"
    target.mkdir()
    enter = shlex.join(["chroot", str(target), *program])

    def run(*options: str) -> Job:
        begin = shlex.join([tool, "mount", *options, "--name", "box", found.name, str(target)])
        script = f"{begin} >/dev/null; {enter}; {tool} umount box >/dev/null; {tool} rm box >/dev/null"
        return lambda: command(["bash", "-euc", script], env=environment)

    yield {"layerfs mount, chroot, umount, rm": run(), "layerfs, the same through FUSE": run("--backend", "fuse")}


@contextmanager
def _podman(found: CorpusImage, work: Path, program: Sequence[str]) -> Iterator[dict[str, Job]]:
    with podman(work) as tool:
        name = output([*tool, "load", "--quiet", "--input", found.docker_archive]).split()[-1]
        options = ["--rm", "--network=none", "--log-driver=none", *LIMITS]
        words = [*tool, "--cgroup-manager=cgroupfs", "--runtime=runc", "run", *options, name, *program]
        yield {"podman run": lambda: command(words)}


@contextmanager
def _containerd(found: CorpusImage, work: Path, program: Sequence[str]) -> Iterator[dict[str, Job]]:
    with containerd(work) as (ctr, _):
        command([*ctr, "images", "import", "--base-name", f"localhost/{found.name}", found.oci_archive])
        name = output([*ctr, "images", "ls", "-q"]).split()[0]
        yield {"ctr run": lambda: command([*ctr, "run", "--rm", name, "box", *program])}


def _all_cpu(job: Job) -> Job:
    def run() -> Sample:
        before = cpu_seconds()
        sample = job()
        return replace(sample, cpu=cpu_seconds() - before)

    return run


def _cold(job: Job) -> Job:
    def run() -> Sample:
        drop_caches()
        return job()

    return run


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("start", __doc__, rounds=7)
    parser.add_argument("--image", default="python-app", type=image_name)
    options = parser.parse_args(arguments)
    report = Report("start", vars(options))
    with tempfile.TemporaryDirectory() as empty:
        tools = _tools(Path(empty, "store"))
        for job in tools.values():
            job()
        samples, failed = interleave(tools, options.rounds, report.on)
    for word in ("version", "help", "images"):
        rows = {name: found for name, found in samples.items() if word in name or name.startswith("python")}
        report.table(f"tools: {word}", rows, base="python -c pass", failed=failed, unit=("ms", 1e3))
    found = image(options.image)
    imports = ["/opt/venv/bin/python3", "-c", "import numpy, pandas, django.db.models"]
    programs = {"true": ["/bin/true"]} | (
        {"python imports numpy, pandas, django": imports} if "app" in found.name else {}
    )
    for title, program in programs.items():
        with ExitStack() as stack:
            place = stack.enter_context(fresh_filesystem())
            jobs: dict[str, Job] = {}
            broken: dict[str, str] = {}
            for name, make in {"layerfs": _layerfs, "podman": _podman, "ctr": _containerd}.items():
                work = place / name[0]
                work.mkdir()
                needs = None if name == "layerfs" else name
                jobs |= prepare(stack, f"{name} run", partial(make, found, work, program), broken, needs=needs) or {}
            for name, job in list(jobs.items()):
                job()
                jobs[name] = _all_cpu(job)
            for state in ("warm", "cold"):
                ready = jobs if state == "warm" else {name: _cold(job) for name, job in jobs.items()}
                samples, failed = interleave(ready, options.rounds, report.on)
                failed |= broken
                base = "layerfs mount, chroot, umount, rm"
                report.table(f"{found.name}: {title}, {state}", samples, base=base, failed=failed, unit=("ms", 1e3))
    report.write()
