"""load: an image archive into an empty store, durable, beside inflate-and-digest alone and beside the peers.

Each run starts on a new file system. The archive is in the page cache (both the network's and the disk's speed are
another question). layerfs is durable when it ends; for the peers, who are not, the flush afterwards is shown apart as
``sync``, seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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
    interleave,
    settle,
)
from bench.peers import ImportVariant, floors, importers, versions

__all__ = ["layerfs_command", "main"]


def layerfs_command() -> str:
    """The layerfs of the environment that runs this benchmark, else the one in PATH."""
    beside = Path(sys.executable).with_name("layerfs")
    return str(beside) if beside.exists() else (shutil.which("layerfs") or "layerfs")


def store_environment(work: Path) -> dict[str, str]:
    """The environment that makes layerfs keep everything below ``work``."""
    return {**os.environ, "LAYERFS_ROOT": str(work / "store"), "LAYERFS_RUNROOT": str(work / "run")}


def _layerfs(source: Callable[[CorpusImage], Path]) -> ImportVariant:
    def load(found: CorpusImage, work: Path) -> Sample:
        return command([layerfs_command(), "load", "--input", source(found)], env=store_environment(work))

    return load


def _measured(variant: ImportVariant, found: CorpusImage, scratch: Path | None) -> Callable[[], Sample]:
    def one() -> Sample:
        with fresh_directory(scratch) if scratch else fresh_filesystem() as root:
            # Every time: a virtual machine's memory may be taken back between two runs.
            for path in (*found.layers(), found.oci_archive, found.zstd_archive(), found.docker_archive):
                command(["cat", path])
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


def main(arguments: Sequence[str]) -> None:
    """Run the scenario with options from the command line."""
    parser = common_options("load", __doc__, rounds=5)
    parser.add_argument("--image", action="append", help="python-app and node-like unless given")
    parser.add_argument("--scratch", type=Path, help="work in new directories below this one, not on new file systems")
    options = parser.parse_args(arguments)
    report = Report("load", {**vars(options), "scratch": str(options.scratch), "peers": dict(versions())})
    for name in options.image or ["python-app", "node-like"]:
        found = image(name)
        variants: dict[str, ImportVariant] = {
            "layerfs load (OCI archive)": _layerfs(lambda known: known.oci_archive),
            "layerfs load (OCI archive, zstd)": _layerfs(lambda known: known.zstd_archive()),
            "layerfs load (docker-archive)": _layerfs(lambda known: known.docker_archive),
            **floors(),
            **importers(),
        }
        ready = {key: _measured(run, found, options.scratch) for key, run in variants.items()}
        samples, failed = interleave(ready, options.rounds, report.on)
        base = "gzip, sha256sum"
        report.table(f"{name}: load into an empty store", samples, base=base, failed=failed)
        if chosen({"layerfs": None}, options.on):
            _again(found, options.rounds, report)
    report.write()
