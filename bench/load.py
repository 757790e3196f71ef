"""load: an image archive into an empty store, durable, beside inflate-and-digest alone and beside the peers.

Each run starts on a new file system. The archive is in the page cache (both the network's and the disk's speed are
another question). layerfs is durable when it ends; for the peers, who are not, the flush afterwards is shown apart as
``sync``, seconds. Layers in gzip are loaded from two large images, one of them without the slow peers; layers in zstd,
and the uncompressed ones of a docker-archive, from a small one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from bench.corpus import CorpusImage, image
from bench.measure import (
    Report,
    Sample,
    bytes_written,
    chosen,
    command,
    common_options,
    fresh_directory,
    fresh_filesystem,
    image_name,
    interleave,
    settle,
    warm,
)
from bench.peers import FORMS, ImportVariant, floors, importers

__all__ = ["layerfs_command", "main", "store_environment"]

Found = TypeVar("Found")


def layerfs_command() -> str:
    """The layerfs of the environment that runs this benchmark, else the one in PATH."""
    beside = Path(sys.executable).with_name("layerfs")
    return str(beside) if beside.exists() else (shutil.which("layerfs") or "layerfs")


def store_environment(work: Path) -> dict[str, str]:
    """The environment that makes layerfs keep everything below ``work``."""
    return {**os.environ, "LAYERFS_ROOT": str(work / "store"), "LAYERFS_RUNROOT": str(work / "run")}


@dataclass(frozen=True, slots=True)
class Job:
    """What is loaded of one image: in which forms, and whether by tools that unpack as well."""

    forms: Sequence[str]
    peers: bool = True


#: By image: all forms and peers of all would take an hour.
_JOBS = {"python-app": Job(["gzip"]), "node-like": Job(["gzip"], peers=False), "demo": Job(["zstd", "docker-archive"])}


def _layerfs(form: str) -> ImportVariant:
    def load(found: CorpusImage, work: Path) -> Sample:
        return command([layerfs_command(), "load", "--input", FORMS[form](found)], env=store_environment(work))

    return load


def _variants(form: str, *, peers: bool) -> dict[str, ImportVariant]:
    return {"layerfs load": _layerfs(form), **floors(form), **importers(form, unpack=peers)}


def _measured(variant: ImportVariant, found: CorpusImage, form: str, scratch: Path | None) -> Callable[[], Sample]:
    def one() -> Sample:
        with fresh_directory(scratch) if scratch else fresh_filesystem() as root:
            # Every time: a virtual machine's memory may be taken back between two runs.
            warm(FORMS[form](found), *(found.layers() if form == "gzip" else []))
            settle()
            before = bytes_written(root)
            sample = variant(found, root)
            start = time.perf_counter()
            settle()
            return replace(
                sample,
                extra={"sync": time.perf_counter() - start, "MB written": (bytes_written(root) - before) / 1e6},
            )

    return one


def _again(found: CorpusImage, rounds: int, report: Report) -> None:
    """Load once more with nothing new, beside the start of the program alone."""
    with fresh_filesystem() as root:
        environment = store_environment(root)
        load = [layerfs_command(), "load", "--input", str(found.oci_archive)]
        command(load, env=environment)
        samples, failed = interleave(
            {
                "layerfs load, nothing new": lambda: command(load, env=environment),
                "layerfs --version": lambda: command([layerfs_command(), "--version"], env=environment),
            },
            max(rounds, 5),
        )
        report.table(f"{found.name}: load again", samples, base="layerfs --version", failed=failed)


def _compare(found: CorpusImage, job: Job, options: argparse.Namespace, report: Report) -> None:
    ready: dict[str, Callable[[], Sample]] = {}
    for form in job.forms:
        for name, variant in _variants(form, peers=job.peers).items():
            ready[f"{name} ({form})"] = _measured(variant, found, form, options.scratch)
    samples, failed = interleave(ready, options.rounds, report.on)
    for form in job.forms:

        def of_form(rows: Mapping[str, Found], form: str = form) -> dict[str, Found]:
            end = f" ({form})"
            return {name.removesuffix(end): row for name, row in rows.items() if name.endswith(end)}

        base = next(iter(floors(form)))
        report.table(
            f"{found.name}: load into an empty store, {form}", of_form(samples), base=base, failed=of_form(failed)
        )


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("load", __doc__, rounds=5)
    parser.add_argument("--image", action="append", type=image_name, help=f"{', '.join(_JOBS)} unless given")
    parser.add_argument("--form", action="append", choices=FORMS, help="of the archive; by image unless given")
    parser.add_argument("--scratch", type=Path, help="work in new directories below this one, not on new file systems")
    options = parser.parse_args(arguments)
    report = Report("load", {**vars(options), "image": options.image or list(_JOBS)})
    for name in options.image or _JOBS:
        found = image(name)
        job = _JOBS.get(name, _JOBS["python-app"])
        _compare(found, Job(options.form, job.peers) if options.form else job, options, report)
        if chosen({"layerfs": None}, options.on) and (options.image or name == "python-app"):
            _again(found, options.rounds, report)
    report.write()
