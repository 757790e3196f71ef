"""Measuring goes on when a variant fails, and ends in order when it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import lookup, measure
from bench.measure import Report, Sample, attempt, chosen, command, interleave, prepare, shell, warm
from layerfs.errors import LimitExceeded

_SCRIPT = """
import sys
from bench.measure import command, end_on_signals, interleave
end_on_signals()
def slow():
    return command(["sh", "-c", "sleep 600 & echo $! >$0; wait", sys.argv[1]])
def broken():
    raise OSError("never reached")
print(interleave({"slow": slow}, 1))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_commands_too(tmp_path: Path, number: signal.Signals) -> None:
    told = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", _SCRIPT, told], stdout=subprocess.PIPE) as process:
        while not (told.exists() and told.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert not out
    sleeper = int(told.read_text())
    for _ in range(200):
        try:
            state = Path(f"/proc/{sleeper}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the command's child lives on")


def test_the_others_go_on_when_one_fails() -> None:
    ran: list[str] = []

    def works() -> Sample:
        ran.append("works")
        return Sample(1)

    def fails() -> Sample:
        ran.append("fails")
        raise LimitExceeded("no such thing")

    samples, failed = interleave({"works": works, "fails": fails}, 3)
    assert len(samples["works"]) == 3
    assert "fails" not in samples
    assert "no such thing" in failed["fails"]
    assert ran.count("fails") == 1


def test_what_cannot_be_prepared_is_noted() -> None:
    def broken() -> contextlib.AbstractContextManager[int]:
        raise RuntimeError("does not start")

    failed: dict[str, str] = {}
    with ExitStack() as stack:
        assert prepare(stack, "one", broken, failed) is None
        assert prepare(stack, "two", lambda: contextlib.nullcontext(2), failed) == 2
        assert prepare(stack, "three", broken, failed, needs="no-such-program") is None
    assert failed == {"one": "does not start", "three": "no-such-program is not installed"}
    assert attempt(lambda: int("x"), "four", failed, "at 4: ") is None
    assert failed["four"].startswith("at 4: invalid literal")


def test_a_command_that_fails_says_what_it_printed() -> None:
    with pytest.raises(RuntimeError, match=r"exited with 3\nbecause"):
        command(["sh", "-c", "echo because >&2; exit 3"])
    with pytest.raises(RuntimeError):
        shell("false | true")


def test_only_what_is_asked_for_is_chosen() -> None:
    every = {"layerfs load": 1, "podman load": 2, "ctr image import": 3}
    assert chosen(every, None) == every
    assert chosen(every, "podman, ctr") == {"podman load": 2, "ctr image import": 3}


def test_nothing_measured_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    report = Report("load", {"on": "nobody"})
    report.table("a table", {}, base="none")
    with pytest.raises(SystemExit, match="--on nobody"):
        report.write()
    assert os.listdir(tmp_path) == []


def test_what_fails_of_ours_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    for name, fails in (("podman load", False), ("layerfs load", True)):
        report = Report("load", {})
        report.table("a table", {"gzip": [Sample(1.0)]}, base="gzip", failed={name: "broken"})
        with pytest.raises(SystemExit, match=name) if fails else contextlib.nullcontext():
            report.write()
        (written,) = tmp_path.iterdir()
        written.unlink()


def test_files_are_warmed_without_being_written_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    warm(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == bytes(3 << 20)


def test_first_names_are_all_different(tmp_path: Path) -> None:
    """A name that was looked at a moment ago is no first one."""
    asked: list[bytes] = []

    @contextlib.contextmanager
    def way() -> Iterator[lookup.Look]:
        yield asked.extend

    if os.geteuid():
        pytest.skip("emptying the caches needs root")
    paths = [b"d/%d" % number for number in range(50)]
    found = lookup._round(way, paths, 0)
    assert asked[1:51] == paths
    assert set(found) == {"first", "known", "missing"}
    missing = asked[51 + lookup._LOOKS :]
    assert len(missing) == len(set(missing)) == lookup._LOOKS
