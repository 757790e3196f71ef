"""compare: two result files of one scenario, row by row; exits 1 when something of ours became slower, or fails.

A change counts when the interval of the ratio of medians, by resampling both runs, lies on one side of 1 and the change
is larger than the noise allowed. The interval is as wide as it takes to be wrong about any row of the two files in one
comparison of twenty. So few samples that all of one run exceed all of the other by chance more often than that get no
verdict: five and five tell of six rows, seven and seven of 85. Where a table's base is not ours, the ratio to it
is compared, since a machine that is slower today is slower for both; elsewhere that is for the reader to see.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.results_file import Row, Run, Table, read_run

__all__ = ["main", "ratio_interval"]

_RESAMPLES = 4000
#: Of all rows together.
_ERROR = 0.05
#: Settings that change nothing of what a variant does.
_HARMLESS = frozenset({"rounds", "on", "rows", "only", "peers", "versions"})


def ratio_interval(
    before: Sequence[float], after: Sequence[float], base: tuple[Sequence[float], Sequence[float]] | None = None, *,
    error: float = _ERROR,
) -> tuple[float, float, float]:  # fmt: skip
    """Return the ratio of medians, after to before, with the ends of its interval.

    Args:
        before: seconds of one run.
        after: seconds of the other.
        base: of another variant in both runs, to which each is set in relation first.
        error: how often the interval may miss the truth.
    """
    chance = random.Random(0)  # the same files give the same answer

    def ratio(draw: bool) -> float:
        medians = [
            statistics.median(chance.choices(found, k=len(found)) if draw else found)
            for found in (after, before, *(base or ([1.0], [1.0])))
        ]
        return medians[0] / medians[1] * medians[2] / medians[3]

    ratios = sorted(ratio(True) for _ in range(_RESAMPLES))
    edge = min(int(_RESAMPLES * error / 2), _RESAMPLES // 2 - 1)
    return ratio(False), ratios[edge], ratios[-1 - edge]


def _enough(before: Row, after: Row, error: float) -> bool:
    """Whether chance alone puts all samples of one run above all of the other less often than the error allowed."""
    ours, theirs = len(before.samples), len(after.samples)
    return 2 / math.comb(ours + theirs, ours) <= error


def _verdict(ratio: float, low: float, high: float, noise: float) -> str:
    if low > 1 and ratio > 1 + noise:
        return "slower"
    if high < 1 and ratio < 1 - noise:
        return "faster"
    return "same"


def _tables(run: Run) -> Iterator[Table]:
    yield from run.tables
    yield from (curve.table() for curve in run.curves)


def _read(parser: argparse.ArgumentParser, path: Path) -> Run:
    try:
        return read_run(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{path}: no result of a scenario: {error}")


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--noise", type=float, default=0.1, help="change of the median that is none (default: 0.1)")
    parser.add_argument("--force", action="store_true", help="compare although the settings differ")
    options = parser.parse_args(arguments)
    one, other = _read(parser, options.before), _read(parser, options.after)
    if one.scenario != other.scenario:
        parser.error(f"{options.before} is of {one.scenario}, {options.after} of {other.scenario}")
    differing = sorted(
        name
        for name in one.settings.keys() | other.settings.keys()
        if name not in _HARMLESS and one.settings.get(name) != other.settings.get(name)
    )
    if differing and not options.force:
        parser.error(f"they were not measured in the same way (--force compares them): {', '.join(differing)}")
    after = {table.title: table for table in _tables(other)}
    rows = sum(len(table.rows) for table in _tables(one))
    worse = 0
    for table in _tables(one):
        now = after.get(table.title)
        if now is None:
            print(f"\n### {table.title}\n\nonly in {options.before}")
            continue
        print(f"\n### {table.title}\n\n| variant | before | after | ratio | interval | |\n|---|---|---|---|---|---|")
        for row in table.rows:
            found = now.find(row.variant)
            if found is None:
                verdict = "fails" if row.variant in now.failed else "gone"
                worse += row.is_ours and verdict == "fails"
                print(f"| {row.variant} | {row.median:.4g} | - | | | {verdict} |")
            else:
                worse += _print_row(row, found, (table, now), options.noise, _ERROR / rows)
    return 1 if worse else 0


def _print_row(before: Row, after: Row, tables: tuple[Table, Table], noise: float, error: float) -> bool:
    medians = f"{before.median:.4g} | {after.median:.4g}"
    if not _enough(before, after, error):
        print(f"| {before.variant} | {medians} | {after.median / before.median:.2f} | | too few samples |")
        return False
    bases = [table.find(table.base) for table in tables]
    base = None
    one, other = bases
    if one is not None and other is not None and not one.is_ours and _enough(one, other, error):
        base = (one.walls, other.walls)
    if before.variant == tables[0].base:
        base = None
    ratio, low, high = ratio_interval(before.walls, after.walls, base, error=error)
    verdict = _verdict(ratio, low, high, noise)
    print(f"| {before.variant} | {medians} | {ratio:.2f} | {low:.2f}-{high:.2f} | {verdict} |")
    return before.is_ours and verdict == "slower"
