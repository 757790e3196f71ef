"""How things are timed here: fresh file systems, interleaved rounds, medians with spread, one JSON per result.

A *variant* is one way to do the job (layerfs, a peer, the floor). Rounds are interleaved: every round runs each variant
once, in shuffled order, so that a machine that is slow for a minute is slow for all of them. What a variant needs is
made before its clock starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NoReturn, TypeVar

from bench.corpus import cache_directory, names
from bench.debian import run
from bench.machine import Busy, describe
from bench.results_file import RESULTS, Curve, Row, Sample, Table
from layerfs.errors import LayerfsError

__all__ = [
    "Report",
    "Sample",
    "attempt",
    "bytes_written",
    "chosen",
    "command",
    "common_options",
    "drop_caches",
    "end_on_signals",
    "fresh_directory",
    "fresh_filesystem",
    "image_name",
    "interleave",
    "output",
    "prepare",
    "repeat",
    "settle",
    "shell",
    "turns",
    "warm",
]

#: What a variant may fail with: its row says so, and the others go on.
_FAILURES = (OSError, RuntimeError, ValueError, subprocess.SubprocessError, LayerfsError)

#: Runs a command and writes the peak of its memory, in KiB, to a file. A child of this process would be
#: said to have had all that this one has in memory, which it shares until its exec.
_PEAK_TO = ("/usr/bin/time", "--quiet", "--format=%M", "--output")

#: The signals that asked this program to end.
_ended_by: list[int] = []


def end_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP end the program in order: commands killed, mounts gone, no result written."""

    def end(number: int, _frame: object) -> NoReturn:
        _ended_by.append(number)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # taking everything away must not be interrupted in turn
        sys.exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, end)


def _go_on(error: Exception) -> str:
    """Return what a failed variant has to say, unless it failed because this program is to end."""
    if _ended_by:
        raise SystemExit(128 + _ended_by[0]) from error
    return str(error)


def common_options(scenario: str, about: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what every scenario takes: ``--rounds`` and ``--on``.

    Args:
        scenario: its name.
        about: its module's documentation, of which the first line is shown.
        rounds: how many unless given.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bench run {scenario}", description=(about or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=_count, default=rounds, help=f"of every variant (default: {rounds})")
    parser.add_argument("--on", help="only the variants whose names hold one of these words, comma separated")
    return parser


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return number


def image_name(word: str) -> str:
    """Check the name of an image of the corpus, as the type of an option."""
    if word not in names():
        raise argparse.ArgumentTypeError(f"no image {word!r}; there are {', '.join(names())}")
    return word


Variant = TypeVar("Variant")
Made = TypeVar("Made")


def chosen(variants: Mapping[str, Variant], on: str | None) -> dict[str, Variant]:
    """Return the variants that ``--on`` asks for: all without it."""
    words = [word.strip() for word in (on or "").split(",") if word.strip()]
    return {name: run for name, run in variants.items() if not words or any(word in name for word in words)}


def command(words: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Sample:
    """Run a command and measure it with its waited-for children; raise with what it printed when it fails."""
    argv = [os.fspath(word) for word in words]
    with tempfile.TemporaryFile() as printed, tempfile.NamedTemporaryFile() as peak:
        start = time.perf_counter()
        child = subprocess.Popen(
            [*_PEAK_TO, peak.name, *argv],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            process_group=0,
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            printed.seek(0)
            text = printed.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(argv)} exited with {child.returncode}\n{text}")
        return Sample(wall, usage.ru_utime + usage.ru_stime, int(peak.read()) * 1024)


def shell(script: str, *, env: Mapping[str, str] | None = None) -> Sample:
    """Measure a script of bash, which ends with the first command that fails, also in a pipe."""
    return command(["bash", "-euo", "pipefail", "-c", script], env=env)


def warm(*paths: Path) -> None:
    """Read files, so that they are in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def output(words: Sequence[str | Path]) -> str:
    """Run a command outside any clock and return what it printed; raise with its errors when it fails."""
    argv = [os.fspath(word) for word in words]
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def repeat(job: Callable[[], object], *, at_least: float = 0.05, most: int = 1000) -> Sample:
    """Time a short job: repeated until ``at_least`` seconds are over, reported per run."""
    count = 0
    cpu = time.process_time()
    start = time.perf_counter()
    while True:
        job()
        count += 1
        wall = time.perf_counter() - start
        if wall >= at_least or count >= most:
            break
    return Sample(wall / count, (time.process_time() - cpu) / count)


def interleave(
    variants: Mapping[str, Callable[[], Sample]], rounds: int, on: str | None = None, *, seed: int = 1
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Run every variant that ``on`` asks for ``rounds`` times, each round in an order of its own.

    Returns:
        The samples by variant, and the messages of variants that failed, also if only once; those are not run again.
    """
    variants = chosen(variants, on)
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    failed: dict[str, str] = {}
    for _, name in turns(variants, failed, rounds, seed=seed):
        sample = attempt(variants[name], name, failed)
        if sample is not None:
            samples[name].append(sample)
    return {name: found for name, found in samples.items() if name not in failed}, failed


def turns(
    names: Iterable[Variant], failed: Collection[Variant], rounds: int, *, seed: int = 1
) -> Iterator[tuple[int, Variant]]:
    """Yield whose turn it is, with the number of the round: everyone once per round, each in an order of its own.

    Whoever is in ``failed`` by the beginning of a round takes no part in it any more.
    """
    order = random.Random(seed)
    everyone = list(names)
    for number in range(rounds):
        left = [name for name in everyone if name not in failed]
        order.shuffle(left)
        for name in left:
            yield number, name


def attempt(job: Callable[[], Made], name: str, failed: dict[str, str], where: str = "") -> Made | None:
    """Run one job of a variant; if it fails, note the message, with ``where`` before it, and return None."""
    try:
        return job()
    except _FAILURES as error:
        failed[name] = where + _go_on(error)
        return None


def prepare(
    stack: ExitStack, name: str, make: Callable[[], AbstractContextManager[Made]], failed: dict[str, str], *,
    needs: str | None = None,
) -> Made | None:  # fmt: skip
    """Enter what a variant needs before its clock starts; if that fails, note it, and let the others go on.

    Args:
        stack: what leaves it again.
        name: the variant.
        make: makes the context.
        failed: takes the message.
        needs: a program without which there is no use in trying.
    """
    if needs is not None and not shutil.which(needs):
        failed[name] = f"{needs} is not installed"
        return None
    return attempt(lambda: stack.enter_context(make()), name, failed)


@contextlib.contextmanager
def fresh_filesystem(size: int = 16 << 30) -> Iterator[Path]:
    """A new ext4 on a loop device over a sparse file, mounted for the time of the block; ``size`` is in bytes.

    Every writer starts on the same empty file system: on one where many files were removed, creating files is several
    times dearer, for whoever comes second. The device reads and writes its file directly: through the page cache each
    byte would be copied twice, and only those who wait for the disk would pay for it (a durable load 3.9 s, not 2.6).
    """
    home = cache_directory().parent / "bench"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fs-", dir=home) as scratch:
        backing = Path(scratch) / "disk"
        backing.touch()
        os.truncate(backing, size)
        run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", backing])
        target = Path(scratch) / "mnt"
        target.mkdir()
        device = subprocess.run(
            ["losetup", "--direct-io=on", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            run(["mount", device, target])
            try:
                yield target
            finally:
                _unmount(target)
        finally:
            run(["losetup", "--detach", device])


def _unmount(target: Path) -> None:
    # What a failed run still maps or has open must not leave a mount behind.
    if subprocess.run(["umount", "--recursive", target], check=False, capture_output=True).returncode:
        run(["umount", "--recursive", "--lazy", target])


@contextlib.contextmanager
def fresh_directory(parent: Path) -> Iterator[Path]:
    """A new directory below ``parent``, removed with all mounts in it after the block."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as scratch:
        try:
            yield Path(scratch)
        finally:
            for line in reversed(Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()):
                target = line.split()[4]
                if target.startswith(f"{scratch}/"):
                    _unmount(Path(target))


def bytes_written(place: Path) -> int:
    """Return how many bytes were ever written to the block device that a path lies on."""
    device = os.stat(place).st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[6]) * 512


def settle() -> None:
    """Write back all that is dirty, so that one run does not pay for the one before."""
    os.sync()


#: Megabytes of files in the page cache after each time that it was emptied, in this process.
_left: list[float] = []


def drop_caches() -> None:
    """Empty the page cache and the caches of names and inodes: what follows is cold. What is left is noted."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    _left.append(sum(int(found[name].split()[0]) for name in ("Active(file)", "Inactive(file)")) / 1000)


class Report:
    """Collects rows of one scenario, prints them as Markdown tables and writes one JSON file."""

    def __init__(self, scenario: str, settings: Mapping[str, object]) -> None:
        self.scenario = scenario
        on = settings.get("on")
        #: What :func:`common_options` was given for ``--on``.
        self.on = on if isinstance(on, str) else None
        self._started = time.strftime("%Y%m%dT%H%M%S")
        self._clock = time.perf_counter()
        self._tables: list[Table] = []
        self._curves: list[Curve] = []
        self._settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
        self._machine = describe(cache_directory())
        self._busy = Busy()
        if said := self._busy.before():
            print(f"(this machine is busy: {said})")

    def table(
        self,
        title: str,
        samples: Mapping[str, Sequence[Sample]],
        *,
        base: str,
        failed: Mapping[str, str] | None = None,
        unit: tuple[str, float] = ("s", 1.0),
    ) -> None:
        """Add and print one table; ``base`` names the variant that ratios are against."""
        rows = tuple(Row(variant, tuple(found)) for variant, found in samples.items() if found)
        if not rows and not failed:
            return  # nothing of it was asked for
        table = Table(title, base, rows, dict(failed or {}), unit)
        print(f"\n### {title}\n\n" + "\n".join(table.markdown()))
        self._tables.append(table)

    def curve(
        self,
        title: str,
        axis: str,
        lines: Mapping[str, Mapping[float, Sequence[Sample]]],
        *,
        unit: tuple[str, float] = ("s", 1.0),
        failed: Mapping[str, str] | None = None,
    ) -> None:
        """Add and print one curve: by variant and size, the samples; sizes without any are left out."""
        kept = {
            name: {size: tuple(found) for size, found in sorted(line.items()) if found} for name, line in lines.items()
        }
        curve = Curve(title, axis, {name: line for name, line in kept.items() if line}, unit, dict(failed or {}))
        if not curve.lines and not curve.failed:
            return
        print(f"\n### {title}\n\n" + "\n".join(curve.markdown()))
        self._curves.append(curve)

    def write(self) -> Path:
        """Write ``bench/results/SCENARIO-TIME.json`` and return its path.

        Raises:
            SystemExit: nothing was measured, or something of layerfs failed; the file is written then.
        """
        if not self._tables and not self._curves:
            raise SystemExit(f"bench: nothing of {self.scenario} was measured: no variant is meant by --on {self.on}")
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.scenario}-{self._started}.json"
        document = {
            "scenario": self.scenario,
            "settings": self._settings,
            "machine": {
                **self._machine,
                **self._busy.during(),
                "seconds": time.perf_counter() - self._clock,
                "cache_left": {"times": len(_left), "median": median(_left), "max": max(_left)} if _left else None,
            },
            "tables": [
                {
                    "title": table.title,
                    "base": table.base,
                    "unit": table.unit,
                    "samples": {row.variant: [asdict(sample) for sample in row.samples] for row in table.rows},
                    "failed": table.failed,
                }
                for table in self._tables
            ],
            "curves": [
                {
                    "title": curve.title,
                    "axis": curve.axis,
                    "unit": curve.unit,
                    "failed": curve.failed,
                    "lines": {
                        name: {size: [asdict(sample) for sample in found] for size, found in line.items()}
                        for name, line in curve.lines.items()
                    },
                }
                for curve in self._curves
            ],
        }
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps(document, indent=1))
        whole.replace(path)
        if _left:
            left = f"{median(_left):.0f} MB of files were left, at most {max(_left):.0f}"
            print(f"\n(caches dropped {len(_left)} times: {left})")
        print(f"\n(written to {path} after {time.perf_counter() - self._clock:.0f} s)")
        notes = [made.failed for made in self._tables] + [made.failed for made in self._curves]
        failed = {name for note in notes for name in note if name.startswith("layerfs")}
        if failed:
            raise SystemExit(f"bench: failed: {', '.join(sorted(failed))}")
        return path
