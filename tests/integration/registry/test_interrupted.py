"""Pulls that are killed, cancelled, or made by several at once: nothing is fetched twice, and it ends right."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from layerfs.api import Store
from layerfs.api.async_store import AsyncStore
from layerfs.errors import LayerfsError
from layerfs.registry.access import Access
from tests.faulty_registry import FaultyRegistry, Handler, serving
from tests.image_builder import TestImage, layer, noise
from tests.store_audit import assert_clean, assert_whole, read_file

IMAGE = TestImage([layer({f"file{number}": noise(9_000_000 + number, number)}) for number in range(7)])
TOTAL = sum(map(len, IMAGE.blobs))

ACCESS = Access(verify_tls=False, retry_delay=0.05)


def slowly(handler: Handler) -> bool:
    """Send blobs a piece at a time, so that a pull takes about a second."""
    if handler.kind != "blobs" or handler.what not in handler.registry.blobs:
        return False
    blob = handler.registry.blobs[handler.what]
    rest = blob[handler.start :]
    place = {"Content-Range": f"bytes {handler.start}-{len(blob) - 1}/{len(blob)}"} if handler.start else {}
    handler.answer(206 if handler.start else 200, b"", {"Content-Length": str(len(rest)), **place})
    for start in range(0, len(rest), 1 << 17):
        handler.write(rest[start : start + (1 << 17)])
        time.sleep(0.005)
    return True


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    made = FaultyRegistry(fault=slowly)
    made.add(IMAGE)
    with serving(made):
        yield made


def process(root: Path, registry: FaultyRegistry, *options: str) -> subprocess.Popen[bytes]:
    words = ["--root", str(root), "--no-sync", "pull", "--tls-verify=false", *options, f"{registry.address}/app"]
    script = "from layerfs_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CONFIG_HOME": str(root / "none")},
    )  # fmt: skip


def wait_for(running: subprocess.Popen[bytes], registry: FaultyRegistry, count: int) -> None:
    """Wait until a pull was sent so many bytes of blobs, and is still running."""
    while registry.sent < count:
        assert running.poll() is None
        time.sleep(0.001)


def finish(root: Path, registry: FaultyRegistry) -> None:
    done = process(root, registry)
    _, said = done.communicate(timeout=60)
    assert done.returncode == 0, said
    with Store.open(root, sync=False) as store:
        assert_whole(store)
        assert read_file(store, f"{registry.address}/app", b"/file6") == noise(9_000_006, 6)
    assert not list((root / "partial").iterdir())


@pytest.mark.parametrize("number", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))])
def test_killed_at_any_moment(tmp_path: Path, registry: FaultyRegistry, number: int) -> None:
    root = tmp_path / "store"
    killed = process(root, registry)
    when = random.Random(number).uniform(0, 1.1)
    wait_for(killed, registry, int(min(when, 1) * TOTAL))
    time.sleep(2 * max(0, when - 1))  # when all was received, and before it is an image
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    if root.exists():
        with Store.open(root, sync=False) as store:
            assert not [problem for problem in store.check() if not problem.repaired]
    finish(root, registry)
    assert registry.sent <= 1.1 * TOTAL


def test_killed_again_and_again(tmp_path: Path, registry: FaultyRegistry) -> None:
    root = tmp_path / "store"
    for number in range(4):
        killed = process(root, registry)
        wait_for(killed, registry, (number + 1) * TOTAL // 6)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    finish(root, registry)
    assert registry.sent <= 1.1 * TOTAL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_only_the_received_part(tmp_path: Path, registry: FaultyRegistry, number: int) -> None:
    root = tmp_path / "store"
    running = process(root, registry)
    while registry.sent < TOTAL // 2:
        time.sleep(0.01)
    running.send_signal(number)
    _, said = running.communicate(timeout=10)
    assert running.returncode == (130 if number == signal.SIGINT else 128 + number), said
    assert b"Traceback" not in said
    with Store.open(root, sync=False) as store:
        assert_clean(store)
        assert store.images() == []
        assert store.info().layers == 0
    assert sum(part.stat().st_size for part in (root / "partial").iterdir()) > TOTAL // 3
    assert list((root / "locks").glob("part-*")) == []
    finish(root, registry)
    assert registry.sent <= 1.1 * TOTAL


def test_two_processes_fetch_each_layer_once(tmp_path: Path, registry: FaultyRegistry) -> None:
    root = tmp_path / "store"
    with Store.open(root, sync=False):
        pass
    both = [process(root, registry), process(root, registry)]
    for one in both:
        out, said = one.communicate(timeout=60)
        assert one.returncode == 0, said
        assert out.splitlines()[-1].startswith(b"sha256:")
    assert registry.sent <= 1.01 * TOTAL
    finish(root, registry)


def test_one_takes_over_when_the_other_dies(tmp_path: Path, registry: FaultyRegistry) -> None:
    root = tmp_path / "store"
    with Store.open(root, sync=False):
        pass
    first = process(root, registry, "--jobs", "7")
    while registry.sent < TOTAL // 4:
        time.sleep(0.01)
    second = process(root, registry)
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert registry.sent <= 1.1 * TOTAL
    finish(root, registry)


def test_threads_and_tasks_of_one_process(tmp_path: Path, registry: FaultyRegistry) -> None:
    name = f"{registry.address}/app"

    async def tasks() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: store.pull(name, access=ACCESS))

    trio.run(tasks)
    assert registry.sent <= 1.01 * TOTAL
    with Store.open(tmp_path / "other", sync=False) as store:
        threads = [threading.Thread(target=store.pull, args=(name,), kwargs={"access": ACCESS}) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_whole(store)
    assert registry.sent <= 2.02 * TOTAL


def test_cancelling_a_task(tmp_path: Path, registry: FaultyRegistry) -> None:
    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            with trio.move_on_after(0.7) as scope:
                await store.pull(f"{registry.address}/app", access=ACCESS)
            assert scope.cancelled_caught
            began = trio.current_time()
            assert await store.images() == []
            images = await store.pull(f"{registry.address}/app", access=ACCESS)
            assert trio.current_time() - began < 10
            assert [image.names for image in await store.images()] == [images[0].names]

    trio.run(run)
    assert registry.sent <= 1.1 * TOTAL
    with Store.open(tmp_path / "store", sync=False) as store:
        assert_whole(store)


def test_blocking_inside_a_task_is_refused(tmp_path: Path, registry: FaultyRegistry) -> None:
    async def run() -> None:
        with Store.open(tmp_path / "store", sync=False) as store, pytest.raises(LayerfsError, match="trio task"):
            store.pull(f"{registry.address}/app", access=ACCESS)

    trio.run(run)


def test_check_ends_a_pull(tmp_path: Path, registry: FaultyRegistry) -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        if registry.sent > TOTAL // 4:
            raise Enough

    with Store.open(tmp_path / "store", sync=False) as store:
        with pytest.raises(Enough):
            store.pull(f"{registry.address}/app", access=ACCESS, check=check)
        assert_clean(store)


def test_no_room_for_parts(tmp_path: Path, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where parts cannot be written, bytes go through memory."""
    from layerfs.store.part import Part

    def full(self: Part, data: bytes) -> None:
        if self.size >= 1_000_000:
            raise OSError(28, "No space left on device")
        append(self, data)

    append = Part.append
    monkeypatch.setattr(Part, "append", full)
    with Store.open(tmp_path / "store", sync=False) as store:
        store.pull(f"{registry.address}/app", access=ACCESS)
        assert_whole(store)
    assert registry.sent <= 1.01 * TOTAL


def test_events_of_a_pull(tmp_path: Path, registry: FaultyRegistry) -> None:
    out, _ = process(tmp_path / "store", registry, "--format", "jsonl").communicate(timeout=60)
    *events, last = [json.loads(line) for line in out.splitlines()]
    assert set(last) == {"Id", "RepoTags"}
    assert {event["status"] for event in events} >= {"Waiting", "Downloading", "Extracting", "Pull complete"}
    assert all(0 <= event["current"] <= event["total"] for event in events if "total" in event)
