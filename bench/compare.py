"""compare: two result files of one scenario, variant by variant; exits 1 when something of ours became slower.

A change counts when the 95 % interval of the ratio of medians, by resampling both runs, lies on one side of 1 and the
change is larger than the noise allowed. Few samples give wide intervals: that is the point.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.results_file import Row, read_run

__all__ = ["main", "ratio_interval"]

_RESAMPLES = 2000


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of medians, after to before, with the ends of its 95 % interval."""
    chance = random.Random(0)  # the same files give the same answer
    ratios = sorted(
        statistics.median(chance.choices(after, k=len(after)))
        / statistics.median(chance.choices(before, k=len(before)))
        for _ in range(_RESAMPLES)
    )
    ratio = statistics.median(after) / statistics.median(before)
    return ratio, ratios[_RESAMPLES // 40], ratios[-_RESAMPLES // 40]


def _verdict(ratio: float, low: float, high: float, noise: float) -> str:
    if low > 1 and ratio > 1 + noise:
        return "slower"
    if high < 1 and ratio < 1 - noise:
        return "faster"
    return "same"


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--noise", type=float, default=0.1, help="change of the median that is none (default: 0.1)")
    options = parser.parse_args(arguments)
    one, other = read_run(options.before), read_run(options.after)
    if one.scenario != other.scenario:
        parser.error(f"{options.before} is of {one.scenario}, {options.after} of {other.scenario}")
    slower = 0
    for table in one.tables:
        now = next((found for found in other.tables if found.title == table.title), None)
        if now is None:
            print(f"\n### {table.title}\n\nonly in {options.before}")
            continue
        print(f"\n### {table.title}\n\n| variant | before | after | ratio | 95 % | |\n|---|---|---|---|---|---|")
        for row in table.rows:
            found = now.find(row.variant)
            if found is None:
                print(f"| {row.variant} | {row.median:.4g} | - | | | gone |")
                continue
            slower += _print_row(row, found, options.noise)
    return 1 if slower else 0


def _print_row(before: Row, after: Row, noise: float) -> bool:
    ratio, low, high = ratio_interval(before.walls, after.walls)
    verdict = _verdict(ratio, low, high, noise)
    medians = f"{before.median:.4g} | {after.median:.4g}"
    print(f"| {before.variant} | {medians} | {ratio:.2f} | {low:.2f}-{high:.2f} | {verdict} |")
    return before.is_ours and verdict == "slower"
