"""What a scenario writes and ``compare`` and ``report`` read: one JSON file per run of a scenario."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.settings import setting

__all__ = ["RESULTS", "Curve", "Row", "Run", "Sample", "Table", "ending", "newest_runs", "read_run"]

RESULTS = Path(__file__).parent / "results"


def ending(message: str) -> str:
    """Return the end of what a failed variant said, in one line: commands come first, the reason last."""
    line = " ".join(message.split())
    return line if len(line) <= 300 else f"…{line[-300:]}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: wall and CPU time in seconds, the largest resident set in bytes, and anything else worth keeping."""

    wall: float
    cpu: float = 0.0
    peak: int = 0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of a table, with at least one sample."""

    variant: str
    samples: tuple[Sample, ...]

    @property
    def walls(self) -> list[float]:
        """Seconds of each sample."""
        return [sample.wall for sample in self.samples]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.walls)

    @property
    def label(self) -> str:
        """The variant, and the medians of what else was measured."""
        extra = "".join(
            f"; {key} {statistics.median(sample.extra[key] for sample in self.samples):.4g}"
            for key in sorted(self.samples[0].extra)
        )
        return f"{self.variant}{extra}"

    @property
    def is_floor(self) -> bool:
        """Whether it is no tool for the job, but what the job cannot be done without: reading, digesting, starting."""
        floors = (
            "gzip, sha",
            "igzip, openssl",
            "zstd, openssl",
            "cat, ",
            "ext4",
            "null C",
            "python -c",
            "archives",
            "openssl",
            "erofs",
        )
        return self.variant.startswith(floors)

    @property
    def is_ours(self) -> bool:
        """Whether it measures this project rather than a peer or a floor."""
        return self.variant.startswith(("layerfs", "library"))


@dataclass(frozen=True, slots=True)
class Table:
    """Variants that were measured in turns.

    Attributes:
        base: the variant that ratios are against.
        failed: what those said that could not be measured.
        unit: name, and how many of it a second has.
    """

    title: str
    base: str
    rows: tuple[Row, ...]
    failed: dict[str, str]
    unit: tuple[str, float] = ("s", 1.0)

    def find(self, variant: str) -> Row | None:
        """Return the row of a variant."""
        return next((row for row in self.rows if row.variant == variant), None)

    def ratio(self, row: Row) -> str:
        """Return how a row compares with the base."""
        return _times(row, self.find(self.base))

    @property
    def best_peer(self) -> Row | None:
        """The fastest of what others do."""
        return min(
            (row for row in self.rows if not row.is_ours and not row.is_floor), key=lambda row: row.median, default=None
        )

    @property
    def floor(self) -> Row | None:
        """The fastest of what the job cannot be done without."""
        return min((row for row in self.rows if row.is_floor), key=lambda row: row.median, default=None)

    def markdown(self) -> Iterator[str]:
        """Yield the lines of the table, and of the settings of its variants; what was not measured is a dash."""
        name, factor = self.unit
        to_best = "to the best peer" if self.best_peer else "-"
        to_floor = f"to {self.floor.variant}" if self.floor else "-"
        yield (
            f"| variant | n | median {name} | min | max | ratio to {self.base} | {to_best} | {to_floor}"
            f" | CPU {name} | peak MB |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for row in self.rows:
            cpu = statistics.median(sample.cpu for sample in row.samples) * factor
            peak = max(sample.peak for sample in row.samples) / 1e6
            yield (
                f"| {row.label} | {len(row.samples)} | {row.median * factor:.4g} | {min(row.walls) * factor:.4g} "
                f"| {max(row.walls) * factor:.4g} | {self.ratio(row)} | {_times(row, self.best_peer)} "
                f"| {_times(row, self.floor)} | {f'{cpu:.4g}' if cpu else '-'} | {f'{peak:.0f}' if peak else '-'} |"
            )
        for variant, message in self.failed.items():
            yield f"| {variant} | failed: {ending(message)} |"
        settings = [f"{row.variant}: {text}" for row in self.rows if (text := setting(row.variant))]
        if settings:
            yield ""
            yield f"({'; '.join(settings)})"


@dataclass(frozen=True, slots=True)
class Curve:
    """What something costs by its size, for one or several variants.

    Attributes:
        axis: what the size counts.
        lines: by variant, the samples of each size; sizes ascend.
        failed: what those said that could not be measured, and at which size.
    """

    title: str
    axis: str
    lines: Mapping[str, Mapping[float, tuple[Sample, ...]]]
    unit: tuple[str, float] = ("s", 1.0)
    failed: Mapping[str, str] = field(default_factory=dict)

    def medians(self, variant: str) -> dict[float, float]:
        """Return the median seconds of each size."""
        return {
            size: statistics.median(sample.wall for sample in samples) for size, samples in self.lines[variant].items()
        }

    def exponent(self, variant: str) -> float | None:
        """Return how the cost grows: 0 not at all, 1 with the size, 2 with its square; None for fewer than three sizes.

        Fitted to the three largest sizes, since below them what does not grow hides what does.
        """
        points = [
            (math.log(size), math.log(cost)) for size, cost in list(self.medians(variant).items())[-3:] if cost > 0
        ]
        if len(points) < 3:
            return None
        slope, _ = statistics.linear_regression(*zip(*points, strict=True))
        return slope

    def table(self) -> Table:
        """Return the same as a table with one row per variant and size, for comparisons."""
        rows = tuple(
            Row(f"{variant} at {size:g} {self.axis}", samples)
            for variant, sizes in self.lines.items()
            for size, samples in sizes.items()
        )
        return Table(self.title, rows[0].variant if rows else "", rows, dict(self.failed), self.unit)

    def markdown(self) -> Iterator[str]:
        """Yield the lines of a table with one column per size."""
        sizes = sorted({size for line in self.lines.values() for size in line})
        name, factor = self.unit
        yield f"| {name}, by {self.axis} | {' | '.join(f'{size:g}' for size in sizes)} | exponent |"
        yield "|---" * (len(sizes) + 2) + "|"
        for variant in self.lines:
            medians = self.medians(variant)
            cells = [f"{medians[size] * factor:.3g}" if size in medians else "-" for size in sizes]
            slope = self.exponent(variant)
            yield f"| {variant} | {' | '.join(cells)} | {'-' if slope is None else f'{slope:.2f}'} |"
        for variant, message in self.failed.items():
            yield f"| {variant} | failed: {ending(message)} |"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one scenario."""

    path: Path
    scenario: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether some variants were left out, or files lay in a place that was chosen."""
        return bool(self.settings.get("on") or self.settings.get("scratch"))

    @property
    def date(self) -> str:
        """The day of the run."""
        stamp = self.path.stem.rpartition("-")[2]
        return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}"


def read_run(path: Path) -> Run:
    """Read a file that :meth:`bench.measure.Report.write` wrote.

    Raises:
        OSError, ValueError, KeyError: it is none.
    """
    document = json.loads(path.read_bytes())
    tables = tuple(
        Table(
            table["title"],
            table["base"],
            tuple(
                Row(variant, tuple(Sample(**sample) for sample in samples))
                for variant, samples in table["samples"].items()
                if samples
            ),
            table["failed"],
            tuple(table.get("unit", ("s", 1.0))),
        )
        for table in document["tables"]
    )
    curves = tuple(
        Curve(
            curve["title"],
            curve["axis"],
            {
                variant: {float(size): tuple(Sample(**sample) for sample in samples) for size, samples in line.items()}
                for variant, line in curve["lines"].items()
            },
            tuple(curve["unit"]),
            curve.get("failed", {}),
        )
        for curve in document.get("curves", ())
    )
    return Run(path, document["scenario"], document["settings"], document["machine"], tables, curves)


def newest_runs(directory: Path = RESULTS) -> list[Run]:
    """Return the runs with the newest measurement of every table and curve, by scenario, newest first.

    What a newer run has measured again is left out of an older one, so that measuring a part replaces that part alone.
    A run of some variants, or in a place of its own, only stands in for what no whole run has.

    Raises:
        SystemExit: a file is damaged; the message names it.
    """
    runs: list[Run] = []
    seen: set[tuple[str, str]] = set()
    newest_first = sorted(directory.glob("*-*.json"), key=lambda path: path.stem.rpartition("-")[2], reverse=True)
    for run in sorted(map(_read_named, newest_first), key=lambda run: run.is_partial):
        tables = tuple(table for table in run.tables if (run.scenario, table.title) not in seen)
        curves = tuple(curve for curve in run.curves if (run.scenario, curve.title) not in seen)
        seen |= {(run.scenario, table.title) for table in tables} | {(run.scenario, curve.title) for curve in curves}
        if tables or curves:
            runs.append(replace(run, tables=tables, curves=curves))
    return sorted(runs, key=lambda run: run.scenario)


def _read_named(path: Path) -> Run:
    try:
        return read_run(path)
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"bench: {path} is damaged, remove it: {error}") from error


def _times(row: Row, other: Row | None) -> str:
    return f"{row.median / other.median:.2f}" if other is not None and other.median else "-"
