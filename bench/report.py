"""report: the newest results of all scenarios as one Markdown file and one HTML page with plots, offline.

Bars are medians from zero, dots the single samples. What is slower than a peer, or further than 1.5 times from the
floor, has a list of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from bench.results_file import RESULTS, Run, Table, newest_runs

__all__ = ["html_page", "main", "markdown", "shortfalls"]

#: How far from the floor is far.
_FAR = 1.5

_STYLE = """
:root { color-scheme: light dark; --ours: #2563eb; --peer: #94a3b8; --base: #d97706; --ink: #1f2937; --line: #d1d5db; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --line: #4b5563; --ours: #60a5fa; --peer: #64748b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); } h3 { margin: 2rem 0 .3rem; font-size: 1rem; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--ink); }
.axis { stroke: var(--line); } .ours { fill: var(--ours); } .peer { fill: var(--peer); } .base { fill: var(--base); }
.dot { fill: var(--ink); opacity: .55; } .note { color: var(--peer); font-size: .85rem; margin: 0; }
"""

_WIDTH, _LEFT, _RIGHT, _ROW = 900, 300, 150, 24


def shortfalls(run: Run) -> Iterator[str]:
    """Yield a line for everything of ours that a peer does faster, or that is far from the floor."""
    for table in run.tables:
        peers = [row for row in table.rows if not row.is_ours and row.variant != table.base]
        best = min(peers, key=lambda row: row.median, default=None)
        base = table.find(table.base)
        for row in table.rows:
            if not row.is_ours or row.variant == table.base:
                continue
            if best is not None and row.median > best.median:
                ratio = row.median / best.median
                yield f"{table.title}: {row.variant} takes {ratio:.2f} times as long as {best.variant}"
            elif base is not None and not base.is_ours and row.median > _FAR * base.median:
                ratio = row.median / base.median
                yield f"{table.title}: {row.variant} takes {ratio:.2f} times as long as {base.variant}"


def _about(run: Run) -> str:
    machine = run.machine
    peers = "; ".join(
        str(version) for version in (run.settings.get("peers") or run.settings.get("versions") or {}).values()
    )
    busy = f"; busy, load {machine['load_before']:.1f}" if machine["load_before"] > 0.7 else ""
    what = (
        f"{run.date}, {machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}, Python {machine['python']}"
    )
    return f"{what}{busy}{'. ' + peers if peers else ''}"


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
    return "\n".join(lines)


def _steps(most: float) -> Iterator[float]:
    """Yield round numbers from zero to the end of an axis, some five of them."""
    step = 10.0 ** (len(f"{int(most * 1e9)}") - 10)
    step = next(step * factor for factor in (0.2, 0.5, 1, 2, 5, 10) if most / (step * factor) <= 6)
    position = 0.0
    while position <= most * 1.0001:
        yield position
        position += step


def _plot(table: Table) -> str:
    factor = table.unit[1]
    scale = (_WIDTH - _LEFT - _RIGHT) / max(max(row.walls) for row in table.rows)
    height = _ROW * len(table.rows)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height + 24}" role="img" aria-label="{escape(table.title)}">']
    for step in _steps((_WIDTH - _LEFT - _RIGHT) / scale * factor):
        x = _LEFT + step / factor * scale
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{step:g}</text>')
    alone = not any(row.is_ours for row in table.rows)  # a table without peers
    for number, row in enumerate(table.rows):
        top = number * _ROW
        kind = "ours" if alone or row.is_ours else "base" if row.variant == table.base else "peer"
        label = row.variant if len(row.variant) <= 44 else row.variant[:43] + "…"
        name = f"<title>{escape(row.label)}</title>{escape(label)}"
        end = _LEFT + max(row.walls) * scale + 8
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 16}" text-anchor="end">{name}</text>')
        parts.append(f'<rect class="{kind}" x="{_LEFT}" y="{top + 4}" width="{row.median * scale:.1f}" height="16"/>')
        parts += [
            f'<circle class="dot" cx="{_LEFT + wall * scale:.1f}" cy="{top + 12}" r="2.5"/>' for wall in row.walls
        ]
        parts.append(f'<text x="{end:.1f}" y="{top + 16}">{row.median * factor:.3g} ({table.ratio(row)})</text>')
    return "".join([*parts, "</svg>"])


def html_page(runs: Sequence[Run]) -> str:
    """Return all tables as plots on one page that needs nothing else."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>layerfs: measurements</title><style>{_STYLE}</style><h1>layerfs: measurements</h1>",
        "<p>Bars are medians, dots the single runs, in brackets the ratio to the row that says 1.00.</p>",
    ]
    if missing := [line for run in runs for line in shortfalls(run)]:
        rows = "".join(f"<li>{escape(line)}</li>" for line in missing)
        parts.append(f"<h2>Slower than a peer, or far from the floor</h2><ul>{rows}</ul>")
    for run in runs:
        parts.append(f"<h2>{escape(run.scenario)}</h2><p class=note>{escape(_about(run))}</p>")
        for table in run.tables:
            if table.rows:
                parts.append(f"<h3>{escape(table.title)}, {escape(table.unit[0])}</h3>{_plot(table)}")
            parts += [
                f"<p class=note>{escape(variant)} failed: {escape(message[:300])}</p>"
                for variant, message in table.failed.items()
            ]
    return "\n".join(parts)


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
