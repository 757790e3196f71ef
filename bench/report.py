"""report: the newest results of all scenarios as one Markdown file and one HTML page with plots, offline.

Bars are medians from zero, dots the single samples. What is slower than a peer, or further than 1.5 times from the
floor, has a list of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from bench.arithmetic import extrapolations
from bench.plot import STYLE, plot_curve, plot_table
from bench.results_file import RESULTS, Run, ending, newest_runs

__all__ = ["html_page", "main", "markdown", "shortfalls"]

#: How far from the floor is far, and how much slower than a peer is no chance.
_FAR, _NOISE = 1.5, 1.03

#: From which exponent on something grows faster than its size, and not by chance.
_STEEP = 1.15

_LEGEND = (
    "Bars are medians from zero, dots the single runs, in brackets the ratio to the row that says 1.00. Blue is"
    " layerfs, grey are other tools, orange is what the job cannot be done without. Curves have two logarithmic scales;"
    " behind each name is the exponent that its three largest sizes grow by."
)

_LARGE = "Sizes that no machine here holds, by multiplication"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); } h3 { margin: 2rem 0 .3rem; font-size: 1rem; }
table { border-collapse: collapse; font-size: .8rem; } td, th { padding: 0 .6rem 0 0; text-align: left; }
summary { color: var(--peer); font-size: .85rem; cursor: pointer; }
.note { color: var(--peer); font-size: .85rem; margin: 0; }
"""


def shortfalls(run: Run) -> Iterator[str]:
    """Yield a line for all of ours that a peer does with less, that is far from the floor, or grows beyond its size."""
    for table in run.tables:
        best, floor = table.best_peer, table.floor
        for row in table.rows:
            if not row.is_ours:
                continue
            if best is not None and row.median > _NOISE * best.median:
                yield f"{table.title}: {row.variant} is {row.median / best.median:.2f} times {best.variant}"
            if floor is not None and row.median > _FAR * floor.median:
                ratio = row.median / floor.median
                yield f"{table.title}: {row.variant} is {ratio:.2f} times the floor, {floor.variant}"
    for curve in run.curves:
        for name in curve.lines:
            slope = curve.exponent(name)
            if not name.startswith("layerfs"):
                continue
            if slope is not None and slope > _STEEP:
                yield f"{curve.title}: {name} grows with the {curve.axis} to the power of {slope:.2f}"
            size, cost = list(curve.medians(name).items())[-1]
            others = {peer: curve.medians(peer).get(size) for peer in curve.lines if not peer.startswith("layerfs")}
            fastest, peer = min(((other, peer) for peer, other in others.items() if other), default=(cost, ""))
            if cost > _NOISE * fastest:
                yield f"{curve.title}: {name} is {cost / fastest:.2f} times {peer} at {size:g} {curve.axis}"


def _about(run: Run) -> str:
    machine = run.machine
    versions = machine.get("versions") or run.settings.get("peers") or run.settings.get("versions") or {}
    parts = [
        f"{run.date}, {machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}, Python {machine['python']}"
    ]
    if machine.get("memory"):
        parts.append(
            f"{machine['memory'] / 1e9:.0f} GB of memory, {machine['filesystem']}, layerfs {machine['layerfs']}"
        )
    if left := machine.get("cache_left"):
        parts.append(f"caches dropped {left['times']} times, at most {left['max']:.0f} MB of files left")
    if machine.get("seconds"):
        parts.append(f"took {machine['seconds']:.0f} s")
    if machine.get("busy"):
        parts.append(
            f"BUSY: others used {machine['others']:.0%} of the CPUs before, the host took {machine['stolen']:.0%}"
        )
    return "; ".join(parts) + "".join(f". {version}" for version in versions.values())


def markdown(runs: Sequence[Run]) -> str:
    """Return all tables as Markdown."""
    lines = ["# Measurements", ""]
    missing = [line for run in runs for line in shortfalls(run)]
    lines += (
        ["Slower than a peer, or far from the floor:", "", *(f"- {line}" for line in missing), ""] if missing else []
    )
    for run in runs:
        lines += [f"## {run.scenario}", "", _about(run), ""]
        for table in run.tables:
            lines += [f"### {table.title}", "", *table.markdown(), ""]
        for curve in run.curves:
            lines += [f"### {curve.title}", "", *curve.markdown(), ""]
    if large := list(extrapolations(runs)):
        lines += [f"## {_LARGE}", "", *(f"- {line}" for line in large), ""]
    return "\n".join(lines)


def html_page(runs: Sequence[Run]) -> str:
    """Return all tables as plots on one page that needs nothing else."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>layerfs: measurements</title><style>{STYLE}{_STYLE}</style><h1>layerfs: measurements</h1>",
        f"<p>{_LEGEND}</p>",
    ]
    if missing := [line for run in runs for line in shortfalls(run)]:
        rows = "".join(f"<li>{escape(line)}</li>" for line in missing)
        parts.append(f"<h2>Slower than a peer, or far from the floor</h2><ul>{rows}</ul>")
    for run in runs:
        parts.append(f"<h2>{escape(run.scenario)}</h2><p class=note>{escape(_about(run))}</p>")
        for table in run.tables:
            if table.rows:
                parts.append(f"<h3>{escape(table.title)}, {escape(table.unit[0])}</h3>{plot_table(table)}")
                parts.append(f"<details><summary>figures</summary>{_html_table(table.markdown())}</details>")
            parts += _failures(table.failed)
        for curve in run.curves:
            if curve.lines:
                parts.append(f"<h3>{escape(curve.title)}, {escape(curve.unit[0])} by {escape(curve.axis)}</h3>")
                parts.append(plot_curve(curve))
                parts.append(f"<details><summary>figures</summary>{_html_table(curve.markdown())}</details>")
            parts += _failures(curve.failed)
    if large := list(extrapolations(runs)):
        rows = "".join(f"<li>{escape(line)}</li>" for line in large)
        parts.append(f"<h2>{_LARGE}</h2><ul>{rows}</ul>")
    return "\n".join(parts)


def _failures(failed: Mapping[str, str]) -> list[str]:
    return [
        f"<p class=note>{escape(variant)} failed: {escape(ending(message))}</p>" for variant, message in failed.items()
    ]


def _html_table(lines: Iterable[str]) -> str:
    """Turn lines of a Markdown table, and what is said below it, into HTML."""
    rows: list[str] = []
    notes = []
    for line in lines:
        if not line.startswith("|"):
            notes.append(line)
        elif not line.startswith("|---"):
            cell = "td" if rows else "th"
            cells = line.strip("| ").split(" | ")
            rows.append("<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in cells) + "</tr>")
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in notes if note)
    return f"<table>{''.join(rows)}</table>{said}"


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the result files")
    options = parser.parse_args(arguments)
    runs = newest_runs(options.results)
    if not runs:
        parser.error(f"no results in {options.results}; run a scenario first")
    for name, text in (("report.md", markdown(runs)), ("report.html", html_page(runs))):
        (options.results / name).write_text(text)
        print(options.results / name)
    return 0
