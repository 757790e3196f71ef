"""Processes that die, or whose system calls fail, anywhere in a load; and several that load at once."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.api import Store
from tests.image_builder import TestImage, docker_old, layer, noise, oci, outer, write_layout
from tests.integration.store.conftest import is_loading, load_command, time_of_load, wait_until
from tests.store_audit import assert_clean, assert_whole, contents, disk, tree_files

SHARED = noise(300_000, "shared")
BASE = TestImage([layer({"base": SHARED, "more": noise(9000, "more")})], ["base:1"])
IMAGE = TestImage(
    [
        layer({"copy": SHARED, "own": noise(1_500_000, "own")}),
        layer({f"d/{number}": noise(10_000, number) for number in range(60)}),
        layer({"top": noise(700_000, "top")}),
    ],
    ["killed:1"],
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "store", sync=False) as store:
        store.load(write_layout(tmp_path / "base", oci(BASE)))
    return tmp_path / "store"


def _recovers(root: Path, source: Path, before: dict[str, bytes]) -> None:
    """Fail unless the store is as before, or has the whole image; then load it and compare."""
    with Store.open(root, sync=False) as store:
        assert len(store.images()) in (1, 2)
        assert not [problem for problem in store.check() if not problem.repaired]
        store.gc()
        assert_clean(store)
        if len(store.images()) == 1:
            assert tree_files(root) == before
        store.load(source)
        assert contents(store, "killed:1")[b"/copy"] == SHARED
        assert_whole(store)


@pytest.mark.parametrize("form", ["pipe", "layout"])
@pytest.mark.parametrize("number", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))])
def test_kill_at_any_moment(root: Path, tmp_path: Path, form: str, number: int) -> None:
    source = tmp_path / "source"
    if form == "pipe":
        source.write_bytes(outer(docker_old(IMAGE), codec="gzip"))
    else:
        write_layout(source, oci(IMAGE))
    before, size = tree_files(root), disk(root)
    shutil.copytree(root, tmp_path / "measured", symlinks=True)
    lasting = time_of_load(tmp_path / "measured", source)
    process = subprocess.Popen(load_command(root, source), stdout=subprocess.DEVNULL)
    wait_until(lambda: is_loading(root), process)
    time.sleep(random.Random(number).uniform(0, 0.9) * lasting)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store.open(root, sync=False) as store:
        store.gc()
        if len(store.images()) == 1:
            log = (root / "store.db-wal").stat().st_blocks * 512  # some file systems set more aside than is written
            assert disk(root) - size < (64 << 10) + log
    _recovers(root, source, before)


_CALLS = [
    "fsync",
    "?rename,?renameat,?renameat2",
    "?unlink,unlinkat,?rmdir",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("pwrite64", "?mkdir,mkdirat", "ftruncate", "flock")),
]


def _strace(*options: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-f", "-qq", *options, *command], check=False, capture_output=True, text=True, timeout=120
    )


@pytest.mark.needs_root
@pytest.mark.parametrize("fault", ["error=EIO", pytest.param("error=ENOSPC", marks=pytest.mark.slow), "signal=KILL"])
@pytest.mark.parametrize("calls", _CALLS)
def test_any_call_may_fail(root: Path, tmp_path: Path, calls: str, fault: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    source = write_layout(tmp_path / "source", oci(IMAGE))
    before = tree_files(root)
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    listed = _strace("-e", f"trace={calls}", "-o", str(tmp_path / "trace"), command=load_command(root, source))
    assert listed.returncode == 0, listed.stderr
    total = sum(bool(re.match(r"\d+ +\w+\(", line)) for line in (tmp_path / "trace").read_text().splitlines())
    assert total
    step = max(1, total // 3)
    for number in range(1, total + 1, step):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "copy", root, symlinks=True)
        ran = _strace(
            "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}:when={number}", "-o", "/dev/null",
            command=load_command(root, source),
        )  # fmt: skip
        if "Traceback" in ran.stderr:  # what the library raises in the end is an error of its own
            assert ran.stderr.splitlines()[-1].startswith("layerfs.errors."), (number, ran.stderr)
        if ran.returncode == 0:
            with Store.open(root, sync=False) as store:
                assert len(store.images()) == 2
        _recovers(root, source, before)


def test_two_processes_load_one_image(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for form in ("layout", "pipe"):
        if form == "layout":
            write_layout(source, oci(IMAGE))
        else:
            shutil.rmtree(source)
            source.write_bytes(outer(docker_old(IMAGE), codec="gzip"))
        running = [subprocess.Popen(load_command(root, source), stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for process in running:
            assert process.communicate()[0].split() == [IMAGE.id]
            assert process.returncode == 0
        with Store.open(root, sync=False) as store:
            assert_whole(store)
            assert store.usage().saved_by_files == len(SHARED)
            store.remove_image("killed:1")


def test_processes_load_images_that_share(root: Path, tmp_path: Path) -> None:
    images = [
        TestImage([IMAGE.layers[number % 3], BASE.layers[0], layer({f"own{number}": SHARED})], [f"i{number}:1"])
        for number in range(5)
    ]
    sources = []
    for number, image in enumerate(images):
        sources.append(tmp_path / f"source{number}")
        sources[-1].write_bytes(outer(docker_old(image)))
    running = [subprocess.Popen(load_command(root, source), stdout=subprocess.DEVNULL) for source in sources]
    assert [process.wait() for process in running] == [0] * 5
    with Store.open(root, sync=False) as store:
        assert_whole(store)
        for number in range(5):
            assert contents(store, f"i{number}:1")[b"/own%d" % number] == SHARED
        for number in range(5):
            store.remove_image(f"i{number}:1")
            assert_whole(store)


def test_a_waiting_load_takes_over_when_the_first_dies(root: Path, tmp_path: Path) -> None:
    source = write_layout(tmp_path / "source", oci(IMAGE))
    first = subprocess.Popen(load_command(root, source), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_loading(root), first)
        first.send_signal(signal.SIGSTOP)  # with the lock of its layer
        assert first.poll() is None
        second = subprocess.Popen(
            load_command(root, source), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert second.stderr is not None
        assert "waiting for it" in second.stderr.readline()
    finally:
        first.kill()
        first.wait()
    assert second.wait(60) == 0, second.stderr.read()
    second.stderr.close()
    with Store.open(root, sync=False) as store:
        assert_whole(store)


def test_a_pipe_needs_no_more_disk_than_the_layers(root: Path, tmp_path: Path) -> None:
    """One pass, without a temporary copy: the disk is watched while the archive is being fed slowly."""
    archive = outer(docker_old(IMAGE.using(codec="none")))
    process = subprocess.Popen([sys.executable, "-c", _FROM_STDIN, str(root)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    before, peak = disk(root), 0
    for start in range(0, len(archive), 1 << 18):
        process.stdin.write(archive[start : start + (1 << 18)])
        process.stdin.flush()
        try:
            peak = max(peak, disk(root) - before)
        except FileNotFoundError:  # a file went between its listing and its look
            continue
    process.stdin.close()
    assert process.wait() == 0
    assert peak < sum(map(len, IMAGE.layers)) + (1 << 20)
    assert not os.listdir(root / "ingest")


_FROM_STDIN = "import sys; from layerfs.api import Store; Store.open(sys.argv[1]).load(sys.stdin.buffer)"
