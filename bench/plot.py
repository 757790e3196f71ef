"""Plots as SVG, without anything else: bars from zero with the single samples on them, and curves on two log scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from html import escape

from bench.results_file import Curve, Table

__all__ = ["STYLE", "plot_curve", "plot_table"]

STYLE = """
:root { color-scheme: light dark; --ours: #2563eb; --peer: #94a3b8; --floor: #d97706; --ink: #1f2937; --line: #d1d5db; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --line: #4b5563; --ours: #60a5fa; --peer: #64748b; } }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--ink); }
.axis { stroke: var(--line); } .ours { fill: var(--ours); } .peer { fill: var(--peer); } .floor { fill: var(--floor); }
.dot { fill: var(--ink); opacity: .55; } .curve { fill: none; stroke-width: 2; }
"""

_WIDTH, _LEFT, _RIGHT, _ROW = 900, 300, 150, 24

#: Of curves: the plot is narrower, since lines are named at their right ends.
_CURVE_LEFT, _CURVE_RIGHT, _CURVE_HEIGHT, _LABEL = 60, 330, 300, 15
#: Told apart by those who do not see all colours (Okabe and Ito).
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#8c564b",
    "#17becf",
    "#bcbd22",
)


def _steps(most: float) -> Iterator[float]:
    """Yield round numbers from zero to the end of an axis, some five of them."""
    step = 10.0 ** (len(f"{int(most * 1e9)}") - 10)
    step = next(step * factor for factor in (0.2, 0.5, 1, 2, 5, 10) if most / (step * factor) <= 6)
    position = 0.0
    while position <= most * 1.0001:
        yield position
        position += step


def plot_table(table: Table) -> str:
    """Return a table as bars: medians from zero, dots the samples, with the ratio to the base."""
    factor = table.unit[1]
    scale = (_WIDTH - _LEFT - _RIGHT) / (max(max(row.walls) for row in table.rows) or 1)
    height = _ROW * len(table.rows)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height + 24}" role="img" aria-label="{escape(table.title)}">']
    for step in _steps((_WIDTH - _LEFT - _RIGHT) / scale * factor):
        x = _LEFT + step / factor * scale
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{step:g}</text>')
    alone = not any(row.is_ours for row in table.rows)  # a table without peers
    for number, row in enumerate(table.rows):
        top = number * _ROW
        kind = "ours" if alone or row.is_ours else "floor" if row.is_floor else "peer"
        label = row.variant if len(row.variant) <= 44 else row.variant[:43] + "…"
        name = f"<title>{escape(row.label)}</title>{escape(label)}"
        end = _LEFT + max(row.walls) * scale + 8
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 16}" text-anchor="end">{name}</text>')
        parts.append(f'<rect class="{kind}" x="{_LEFT}" y="{top + 4}" width="{row.median * scale:.1f}" height="16"/>')
        parts += [
            f'<circle class="dot" cx="{_LEFT + wall * scale:.1f}" cy="{top + 12}" r="2.5"/>' for wall in row.walls
        ]
        value = row.median * factor
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        parts.append(f'<text x="{end:.1f}" y="{top + 16}">{shown} ({table.ratio(row)})</text>')
    return "".join([*parts, "</svg>"])


class _Scale:
    """A logarithmic axis from one power of ten, or a size, to another."""

    def __init__(self, values: list[float], start: float, end: float, *, round_to_tens: bool) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        if round_to_tens:
            low, high = math.floor(low), math.ceil(high)
        self._low, self._span = low, (high - low) or 1.0
        self._start, self._end = start, end
        self.tens = range(math.ceil(low), math.floor(low + self._span) + 1)

    def at(self, value: float) -> float:
        return self._start + (math.log10(value) - self._low) / self._span * (self._end - self._start)


def _colours(names: Iterable[str]) -> list[str]:
    """Return a colour for each line: a name has the same in every plot, unless another one there has it already."""
    taken: list[str] = []
    for name in names:
        first = sum(name.encode()) % len(_COLOURS)
        turns = [_COLOURS[(first + step) % len(_COLOURS)] for step in range(len(_COLOURS))]
        taken.append(next((colour for colour in turns if colour not in taken), turns[0]))
    return taken


def plot_curve(curve: Curve) -> str:
    """Return a curve on two logarithmic scales: medians joined, dots the samples; its exponent stands at its end."""
    factor = curve.unit[1]
    lines = {name: curve.medians(name) for name in curve.lines}
    # What rounds to nothing, such as a database before its first row, has no place on a logarithmic scale.
    lines = {name: {size: cost * factor for size, cost in line.items() if cost > 0} for name, line in lines.items()}
    lines = {name: line for name, line in lines.items() if line}
    sizes = sorted({size for line in lines.values() for size in line})
    costs = [
        sample.wall * factor
        for name in lines
        for samples in curve.lines[name].values()
        for sample in samples
        if sample.wall > 0
    ]
    height = max(_CURVE_HEIGHT, _LABEL * len(lines) + 20)
    across = _Scale(sizes, _CURVE_LEFT, _WIDTH - _CURVE_RIGHT, round_to_tens=False)
    up = _Scale(costs, height, 10, round_to_tens=True)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height + 24}" role="img" aria-label="{escape(curve.title)}">']
    for exponent in up.tens:
        y = up.at(10.0**exponent)
        parts.append(f'<line class="axis" x1="{_CURVE_LEFT}" x2="{_WIDTH - _CURVE_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_CURVE_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>')
    for size in sizes:
        x = across.at(size)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="{height}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{size:g}</text>')
    ends: list[tuple[float, str, str]] = []
    for (name, line), colour in zip(lines.items(), _colours(lines), strict=True):
        points = " ".join(f"{across.at(size):.1f},{up.at(cost):.1f}" for size, cost in line.items())
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{points}"/>')
        parts += [
            f'<circle cx="{across.at(size):.1f}" cy="{up.at(sample.wall * factor):.1f}" r="2" fill="{colour}"/>'
            for size in line
            for sample in curve.lines[name][size]
            if sample.wall > 0
        ]
        slope = curve.exponent(name)
        label = name if slope is None else f"{name} (^{slope:.2f})"
        ends.append((up.at(list(line.values())[-1]), label, colour))
    place = 0.0
    for y, label, colour in sorted(ends):
        place = max(y + 4, place + _LABEL)
        x = _WIDTH - _CURVE_RIGHT + 12
        parts.append(f'<text x="{x}" y="{place:.1f}" style="fill:{colour}">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])
