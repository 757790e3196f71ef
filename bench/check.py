"""check: measure the ratios again that README states, and fail when one of them became worse by more than its noise.

README has them in a table between two comments; each row names a scenario, a table and two variants of it. Ratios are
of medians of one run, so a slower machine changes nothing; absolute times are not looked at.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.results_file import RESULTS, Run, newest_runs

__all__ = ["QUICK", "Stated", "main", "read_stated", "worse"]

_README = Path(__file__).parent.parent / "README.md"

#: What ``make bench-quick`` measures, by scenario.
QUICK: dict[str, list[str]] = {
    "load": ["--image", "demo", "--form", "gzip", "--rounds", "5", "--on", "layerfs,sha256,podman,umoci,ctr"],
    "mount": ["--image", "deep-1", "--image", "deep-101", "--rounds", "5"],
    "resolve": ["--image", "demo", "--rounds", "5"],
    "changes": ["--image", "demo", "--rounds", "5", "--on", "layerfs,podman,buildah,openssl"],
}

_ROW = re.compile(r"\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \| ([\d.]+) \| ([\d.]+) \|")


@dataclass(frozen=True, slots=True)
class Stated:
    """One row: how long ``variant`` takes, as a share of what ``against`` takes in the same table.

    Attributes:
        table: how the table's title begins: what follows may count what an image has, which changes with Debian.
        noise: how much of the ratio may be chance.
    """

    scenario: str
    table: str
    variant: str
    against: str
    ratio: float
    noise: float


def read_stated(readme: str) -> list[Stated]:
    """Return what a README states.

    Raises:
        ValueError: it states nothing.
    """
    _, begin, rest = readme.partition("<!-- checked ratios -->")
    body, end, _ = rest.partition("<!-- end of checked ratios -->")
    rows = [
        Stated(scenario, table, variant, against, float(ratio), float(noise))
        for scenario, table, variant, against, ratio, noise in _ROW.findall(body)
    ]
    if not begin or not end or not rows:
        raise ValueError("README states no ratios")
    return rows


def _measured(stated: Stated, runs: Sequence[Run]) -> float | None:
    for run in runs:
        if run.scenario != stated.scenario:
            continue
        for table in run.tables:
            rows = table.find(stated.variant), table.find(stated.against)
            if table.title.startswith(stated.table) and rows[0] is not None and rows[1] is not None:
                return rows[0].median / rows[1].median
    return None


def worse(stated: Sequence[Stated], runs: Sequence[Run]) -> Iterator[tuple[Stated, float | None, bool]]:
    """Yield for every statement what was measured, None if it was not, and whether that is worse than stated."""
    for row in stated:
        ratio = _measured(row, runs)
        yield row, ratio, ratio is None or ratio > row.ratio * (1 + row.noise)


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-run", action="store_true", help="look at the newest results, measure nothing")
    parser.add_argument("--only-run", action="store_true", help="measure, compare nothing")
    options = parser.parse_args(arguments)
    if not options.no_run:
        for scenario, words in QUICK.items():
            importlib.import_module(f"bench.{scenario}").main(words)
    if options.only_run:
        return 0
    stated = read_stated(_README.read_text())
    failures = 0
    print("\n| what | against | stated | noise | measured | |\n|---|---|---|---|---|---|")
    for row, ratio, bad in worse(stated, newest_runs(RESULTS)):
        failures += bad
        shown = "not there" if ratio is None else f"{ratio:.2f}"
        verdict = "worse" if bad else "holds"
        print(f"| {row.variant} | {row.against} | {row.ratio:.2f} | {row.noise:.0%} | {shown} | {verdict} |")
    return 1 if failures else 0
