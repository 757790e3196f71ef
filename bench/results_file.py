"""What a scenario writes and ``compare`` and ``report`` read: one JSON file per run of a scenario."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import RESULTS

__all__ = ["Row", "Run", "Table", "newest_runs", "read_run"]


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of a table: wall and CPU seconds of each sample, peak bytes of the largest."""

    variant: str
    walls: tuple[float, ...]
    cpus: tuple[float, ...]
    peak: float

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.walls)

    @property
    def is_ours(self) -> bool:
        """Whether it measures this project rather than a peer or a floor."""
        return self.variant.startswith(("layerfs", "library"))


@dataclass(frozen=True, slots=True)
class Table:
    """Variants that were measured in turns; ``base`` names the one that ratios are against."""

    title: str
    base: str
    rows: tuple[Row, ...]
    failed: dict[str, str]

    def find(self, variant: str) -> Row | None:
        """Return the row of a variant."""
        return next((row for row in self.rows if row.variant == variant), None)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one scenario."""

    path: Path
    scenario: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    tables: tuple[Table, ...]

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
                Row(
                    variant,
                    tuple(sample["wall"] for sample in samples),
                    tuple(sample["cpu"] for sample in samples),
                    max(sample["peak"] for sample in samples),
                )
                for variant, samples in table["samples"].items()
                if samples
            ),
            table["failed"],
        )
        for table in document["tables"]
    )
    return Run(path, document["scenario"], document["settings"], document["machine"], tables)


def newest_runs(directory: Path = RESULTS) -> list[Run]:
    """Return the newest run of every scenario that has one, by name."""
    found: dict[str, Path] = {}
    for path in sorted(directory.glob("*-*.json"), key=lambda path: path.stem.rpartition("-")[2]):
        found[path.stem.rpartition("-")[0]] = path
    return [read_run(path) for _, path in sorted(found.items())]
