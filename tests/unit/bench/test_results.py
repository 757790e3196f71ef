"""Results of measurements are paired, compared and drawn as they were written."""

from __future__ import annotations

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import check, compare, report
from bench.arithmetic import extrapolations
from bench.plot import plot_curve
from bench.results_file import Curve, Run, Sample, newest_runs, read_run
from bench.synthetic import files_layer, stack_on, write_image
from layerfs.api import Store


def write(
    directory: Path, stamp: str, samples: dict[str, list[float]], *, failed: dict[str, str] | None = None,
    title: str = "an image: load <new>", settings: dict[str, object] | None = None,
) -> Path:  # fmt: skip
    path = directory / f"load-{stamp}.json"
    rows = {
        name: [{"wall": wall, "cpu": wall, "peak": 1e6, "extra": {"sync": 0.5}} for wall in walls]
        for name, walls in samples.items()
    }
    table = {"title": title, "base": "gzip, sha256sum", "samples": rows, "failed": failed or {}}
    machine = {"kernel": "6", "python": "3", "cpu": "x", "cpus": 2, "versions": {"podman": "podman 4"}}
    document = {
        "scenario": "load",
        "settings": settings or {},
        "machine": machine,
        "tables": [table],
    }
    path.write_text(json.dumps(document))
    return path


BEFORE = {"layerfs load": [2.0, 2.1, 2.2, 2.0, 2.1], "gzip, sha256sum": [1.0] * 5, "podman load": [1.9] * 5}


def test_only_a_clear_change_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path, "20260101T000000", BEFORE)
    noisy = write(tmp_path, "20260102T000000", {**BEFORE, "layerfs load": [1.9, 2.3, 2.1, 3.0, 2.0]})
    slower = write(tmp_path, "20260103T000000", {**BEFORE, "layerfs load": [3.0, 3.1, 3.2, 3.0, 3.1]})
    peer = write(tmp_path, "20260104T000000", {**BEFORE, "podman load": [9.0] * 5})
    assert compare.main([str(before), str(before)]) == 0
    assert compare.main([str(before), str(noisy)]) == 0
    assert compare.main([str(before), str(peer)]) == 0
    capsys.readouterr()
    assert compare.main([str(before), str(slower)]) == 1
    assert "| layerfs load | 2.1 | 3.1 | 1.48 | 1.36-1.60 | slower |" in capsys.readouterr().out
    assert compare.main([str(slower), str(before)]) == 0
    assert "faster" in capsys.readouterr().out


def test_three_samples_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {name: walls[:3] for name, walls in BEFORE.items()}
    before = write(tmp_path, "20260101T000000", few)
    after = write(tmp_path, "20260102T000000", {**few, "layerfs load": [9.0] * 3})
    assert compare.main([str(before), str(after)]) == 0
    assert "too few samples" in capsys.readouterr().out


def test_many_rows_take_more_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 50 rows of five samples, chance alone puts one in order in a third of all comparisons."""
    many = {f"layerfs load {number}": [1.0] * 5 for number in range(50)}
    before = write(tmp_path, "20260101T000000", many)
    after = write(tmp_path, "20260102T000000", {**many, "layerfs load 7": [9.0] * 5})
    assert compare.main([str(before), str(after)]) == 0
    assert "too few samples" in capsys.readouterr().out
    before = write(tmp_path, "20260103T000000", {name: walls + walls for name, walls in many.items()})
    after = write(
        tmp_path, "20260104T000000", {**{name: walls * 2 for name, walls in many.items()}, "layerfs load 7": [9.0] * 10}
    )
    assert compare.main([str(before), str(after)]) == 1


def test_a_slower_machine_is_slower_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path, "20260101T000000", BEFORE)
    after = write(tmp_path, "20260102T000000", {name: [2 * wall for wall in walls] for name, walls in BEFORE.items()})
    assert compare.main([str(before), str(after)]) == 0
    assert "| layerfs load | 2.1 | 4.2 | 1.00 |" in capsys.readouterr().out


def test_what_fails_now_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path, "20260101T000000", BEFORE)
    rest = {name: walls for name, walls in BEFORE.items() if name != "layerfs load"}
    after = write(tmp_path, "20260102T000000", rest, failed={"layerfs load": "broken"})
    assert compare.main([str(before), str(after)]) == 1
    assert "fails" in capsys.readouterr().out


def test_unlike_runs_are_not_compared(tmp_path: Path) -> None:
    before = write(tmp_path, "20260101T000000", BEFORE)
    after = write(tmp_path, "20260102T000000", BEFORE, settings={"image": "demo"})
    with pytest.raises(SystemExit):
        compare.main([str(before), str(after)])
    assert compare.main([str(before), str(after), "--force"]) == 0
    with pytest.raises(SystemExit):
        compare.main([str(before), str(tmp_path / "nothing.json")])


def test_a_part_that_was_measured_again_replaces_that_part_alone(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE)
    write(tmp_path, "20260102T000000", BEFORE, title="another table")
    write(tmp_path, "20260103T000000", BEFORE, title="another table")
    found = [(run.date, [table.title for table in run.tables]) for run in newest_runs(tmp_path)]
    assert found == [("2026-01-03", ["another table"]), ("2026-01-01", ["an image: load <new>"])]


def test_a_run_of_some_variants_hides_no_whole_one(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE)
    write(tmp_path, "20260102T000000", {"layerfs load": [9.0]}, settings={"on": "layerfs"})
    write(tmp_path, "20260103T000000", {"layerfs load": [9.0]}, settings={"scratch": "/mnt"})
    write(tmp_path, "20260104T000000", BEFORE, title="another table", settings={"on": "layerfs,podman"})
    found = [(run.date, [table.title for table in run.tables]) for run in newest_runs(tmp_path)]
    assert sorted(found) == [("2026-01-01", ["an image: load <new>"]), ("2026-01-04", ["another table"])]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE).write_text("{")
    with pytest.raises(SystemExit, match=r"load-20260101T000000\.json is damaged, remove it"):
        newest_runs(tmp_path)


def test_the_newest_run_is_shown_with_its_shortfalls(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE)
    write(tmp_path, "20260201T000000", {**BEFORE, "layerfs load": [1.8] * 5}, failed={"ctr": "no <daemon>"})
    (run,) = newest_runs(tmp_path)
    assert run.date == "2026-02-01"
    assert list(report.shortfalls(run)) == [
        "an image: load <new>: layerfs load is 1.80 times the floor, gzip, sha256sum"
    ]
    old = read_run(tmp_path / "load-20260101T000000.json")
    assert list(report.shortfalls(old)) == [
        "an image: load <new>: layerfs load is 1.11 times podman load",
        "an image: load <new>: layerfs load is 2.10 times the floor, gzip, sha256sum",
    ]
    text = report.markdown([run])
    assert "| layerfs load; sync 0.5 | 5 | 1.8 | 1.8 | 1.8 | 1.80 | 0.95 | 1.80 | 1.8 | 1 |" in text
    assert "podman load: root, storage driver overlay" in text
    assert "| ctr | failed: no <daemon> |" in text


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE, failed={"ctr": "no <daemon>"})
    page = report.html_page(newest_runs(tmp_path))
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            opened.append(tag)
            assert not {"src", "href"} & {name for name, _ in attributes}

    Reader().feed(page)
    assert opened.count("rect") == 3
    assert opened.count("circle") == 15
    assert "load &lt;new&gt;" in page
    assert "no &lt;daemon&gt;" in page
    assert "podman 4" in page


def curve(title: str, axis: str, variant: str, costs: dict[float, float]) -> Curve:
    return Curve(title, axis, {variant: {size: (Sample(cost),) * 3 for size, cost in costs.items()}})


def run_of(*curves: Curve) -> Run:
    machine = {"kernel": "6", "python": "3", "cpu": "x", "cpus": 2, "load_before": 0.1}
    return Run(Path("scaling-20260101T000000.json"), "scaling", {}, machine, (), curves)


def test_a_square_shows() -> None:
    flat = curve("flat", "layers", "layerfs", {1: 2.0, 10: 2.0, 100: 2.0})
    square = curve("square", "layers", "layerfs", {1: 3.0, 10: 3.0, 100: 300.0, 1000: 30_000.0, 10_000: 3e6})
    assert flat.exponent("layerfs") == pytest.approx(0)
    assert square.exponent("layerfs") == pytest.approx(2)
    assert curve("two", "layers", "layerfs", {1: 1, 2: 2}).exponent("layerfs") is None
    assert list(report.shortfalls(run_of(flat, square))) == [
        "square: layerfs grows with the layers to the power of 2.00"
    ]
    assert "| layerfs | 3 | 3 | 300 | 3e+04 | 3e+06 | 2.00 |" in report.markdown([run_of(square)])


def test_a_curve_is_drawn_on_two_logarithmic_scales() -> None:
    drawn = plot_curve(curve("times", "files", "layerfs <x>", {10: 1.0, 100: 10.0, 1000: 100.0}))
    points = [tuple(map(float, pair.split(","))) for pair in drawn.split('points="')[1].split('"')[0].split()]
    steps = {(round(b[0] - a[0], 1), round(b[1] - a[1], 1)) for a, b in itertools.pairwise(points)}
    assert len(steps) == 1  # the same ratio is the same distance
    assert "layerfs &lt;x&gt; (^1.00)" in drawn


def test_large_sizes_are_multiplied_from_what_was_measured() -> None:
    runs = [
        run_of(
            curve("an image by bytes", "MB", "layerfs load", {1: 1.1, 2: 1.2, 3: 1.3}),
            curve("an image by entries", "entries", "layerfs load", {1000: 1.01, 2000: 1.02}),
            curve("an image by layers", "layers", "layerfs load", {1: 1.5, 2: 2.0}),
            curve("bytes of a store", "images", "layerfs database", {10: 1e5, 100: 1e6}),
            curve("bytes of a database by large files", "files", "layerfs database", {10: 1e3, 100: 1e4}),
        )
    ]
    lines = list(extrapolations(runs))
    assert "1000 x 100 ms + 55,000 x 10 µs + 11 x 500 ms = 106 s to load" in lines[0]
    assert "10,000,000 x (1 kB + 1,400 files of 4 KiB and more x 100 B) = 1.41 TB of database" in lines[1]
    assert list(extrapolations([])) == []


README = """
<!-- checked ratios -->
| scenario | table | what | against | ratio | noise |
|---|---|---|---|---|---|
| `load` | an image: load <new> | layerfs load | gzip, sha256sum | 2.10 | 0.2 |
| `load` | an image: load <new> | layerfs load | podman load | 0.90 | 0.1 |
| `load` | gone | layerfs load | gzip, sha256sum | 1.00 | 0.1 |
<!-- end of checked ratios -->
"""


def test_a_ratio_that_became_worse_is_found(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE)
    found = [
        (row.against, ratio, bad) for row, ratio, bad in check.worse(check.read_stated(README), newest_runs(tmp_path))
    ]
    assert found == [
        ("gzip, sha256sum", 2.1, False),
        ("podman load", pytest.approx(2.1 / 1.9), True),
        ("gzip, sha256sum", None, True),
    ]
    with pytest.raises(ValueError, match="no ratios"):
        check.read_stated("nothing")


def test_the_readme_states_ratios_of_the_quick_scenarios() -> None:
    stated = check.read_stated((Path(__file__).parents[3] / "README.md").read_text())
    assert {row.scenario for row in stated} <= set(check.QUICK)
    assert all(0 < row.noise < 1 for row in stated)


def test_made_up_images_are_images(tmp_path: Path) -> None:
    write_image(tmp_path / "base", [files_layer([("a/b/c", b"x" * 5000), ("a/d", b"")])])
    own = {f"localhost/app:{number}": files_layer([(f"own/{number}", b"own")]) for number in range(3)}
    stack_on(tmp_path / "base", tmp_path / "all", own)
    with Store.open(tmp_path / "store", sync=False) as store:
        images = store.load(tmp_path / "all")
        assert sorted(name for image in images for name in image.names) == sorted(own)
        with store.tree("localhost/app:2") as tree:
            assert sorted(path for path, _, _ in tree.walk()) == [
                b"/a",
                b"/a/b",
                b"/a/b/c",
                b"/a/d",
                b"/own",
                b"/own/2",
            ]


def test_a_directory_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
