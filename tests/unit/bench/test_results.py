"""Results of measurements are paired, compared and drawn as they were written."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import compare, report
from bench.results_file import newest_runs, read_run


def write(
    directory: Path, stamp: str, samples: dict[str, list[float]], *, failed: dict[str, str] | None = None
) -> Path:
    path = directory / f"load-{stamp}.json"
    rows = {
        name: [{"wall": wall, "cpu": wall, "peak": 1e6, "extra": {"sync": 0.5}} for wall in walls]
        for name, walls in samples.items()
    }
    table = {"title": "an image: load <new>", "base": "gzip", "samples": rows, "failed": failed or {}}
    machine = {"kernel": "6", "python": "3", "cpu": "x", "cpus": 2, "load_before": 0.1}
    document = {
        "scenario": "load",
        "settings": {"peers": {"podman": "podman 4"}},
        "machine": machine,
        "tables": [table],
    }
    path.write_text(json.dumps(document))
    return path


BEFORE = {"layerfs load": [2.0, 2.1, 2.2, 2.0, 2.1], "gzip": [1.0] * 5, "podman load": [1.9] * 5}


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
    assert "| layerfs load | 2.1 | 3.1 | 1.48 | 1.41-1.55 | slower |" in capsys.readouterr().out
    assert compare.main([str(slower), str(before)]) == 0
    assert "faster" in capsys.readouterr().out


def test_the_newest_run_is_shown_with_its_shortfalls(tmp_path: Path) -> None:
    write(tmp_path, "20260101T000000", BEFORE)
    write(tmp_path, "20260201T000000", {**BEFORE, "layerfs load": [1.8] * 5}, failed={"ctr": "no <daemon>"})
    (run,) = newest_runs(tmp_path)
    assert run.date == "2026-02-01"
    assert list(report.shortfalls(run)) == ["an image: load <new>: layerfs load takes 1.80 times as long as gzip"]
    old = read_run(tmp_path / "load-20260101T000000.json")
    assert list(report.shortfalls(old)) == [
        "an image: load <new>: layerfs load takes 1.11 times as long as podman load"
    ]
    text = report.markdown([run])
    assert "| layerfs load; sync 0.5 | 5 | 1.8 | 1.8 | 1.8 | 1.80 | 1.8 | 1 |" in text
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


def test_a_directory_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
