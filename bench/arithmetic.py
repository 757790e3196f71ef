"""What sizes cost that no test machine holds: plain multiplication of what the curves of ``scaling`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from bench.results_file import Curve, Run

__all__ = ["extrapolations"]

#: A common image: what python-app of the corpus is.
_MEGABYTES, _ENTRIES, _LAYERS = 1_000, 55_000, 11
#: Of one of its layers, the files of 4 KiB and more: those that the database has a row for.
_FILES = 1_400


def _slope(curves: dict[str, Curve], title: str, variant: str) -> float | None:
    """Return what one more of the axis costs, in the unit of the samples (seconds or bytes); None if not measured."""
    curve = next((found for name, found in curves.items() if name.startswith(title)), None)
    if curve is None or variant not in curve.lines:
        return None
    medians = curve.medians(variant)
    if len(medians) < 2:
        return None
    return max(0.0, statistics.linear_regression(list(medians), list(medians.values())).slope)


def _seconds(value: float) -> str:
    for limit, unit, size in ((1e-3, "µs", 1e-6), (1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0)):
        if value < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def _bytes(value: float) -> str:
    for limit, unit, size in ((1e6, "kB", 1e3), (1e9, "MB", 1e6), (1e12, "GB", 1e9)):
        if value < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e12:.3g} TB"


def extrapolations(runs: Sequence[Run]) -> Iterator[str]:
    """Yield one line of arithmetic per question that the newest ``scaling`` run can answer."""
    run = next((found for found in runs if found.scenario == "scaling"), None)
    if run is None:
        return
    curves = {curve.title: curve for curve in run.curves}
    megabyte = _slope(curves, "an image by bytes", "layerfs load")
    entry = _slope(curves, "an image by entries", "layerfs load")
    layer = _slope(curves, "an image by layers", "layerfs load")
    if megabyte is not None and entry is not None and layer is not None:
        one = megabyte * _MEGABYTES + entry * _ENTRIES + layer * _LAYERS
        yield (
            f"One image of {_MEGABYTES} MB, {_ENTRIES:,} entries and {_LAYERS} layers: {_MEGABYTES} x "
            f"{_seconds(megabyte)} + {_ENTRIES:,} x {_seconds(entry)} + {_LAYERS} x {_seconds(layer)} = "
            f"{_seconds(one)} to load; a thousand of them, with nothing shared: {_seconds(1000 * one)}."
        )
    title = "a store by images"
    for variant, what in (
        ("layerfs images", "to list them"),
        ("layerfs df", "to measure them (df)"),
        ("layerfs gc, nothing to do", "to collect with nothing to do"),
        ("layerfs mount and umount", "more for a mount"),
        ("layerfs resolve a name", "more to find a name"),
    ):
        slope = _slope(curves, title, variant)
        if slope is not None:
            product = f"1,000 x {_seconds(slope)} = {_seconds(1000 * slope)}" if slope else "nothing measurable"
            yield f"A node with 1,000 images of ten layers: {product} {what}."
    database = _slope(curves, "bytes of a store", "layerfs database")
    row = _slope(curves, "bytes of a database by large files", "layerfs database")
    if database is not None and row is not None:
        layer_bytes = database / 10 + row * _FILES
        yield (
            f"A registry with 10,000,000 layers: 10,000,000 x ({_bytes(database / 10)} + {_FILES:,} files of 4 KiB and"
            f" more x {row:.0f} B) = {_bytes(1e7 * layer_bytes)} of database."
        )
    trees = _slope(curves, "bytes of a store", "layerfs merged trees")
    if trees is not None:
        yield f"Merged trees of 10,000,000 / 10 images: 1,000,000 x {_bytes(trees)} = {_bytes(1e6 * trees)}."
