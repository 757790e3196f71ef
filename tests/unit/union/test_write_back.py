"""When copies are written back, and that none is forgotten."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.union import write_back
from layerfs.union.write_back import WriteBack

_LONG = 60.0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inode numbers of what was sent off, in order."""
    numbers: list[int] = []
    monkeypatch.setattr(write_back, "start_writeback", lambda fd: numbers.append(os.fstat(fd).st_ino))
    return numbers


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[list[int]]:
    """Descriptors of new files."""
    fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(10)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture(autouse=True)
def _nothing_stays_open(copies: list[int]) -> Iterator[None]:
    del copies  # opened before
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


def inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_copies_are_sent_off_by_themselves(sent: list[int], copies: list[int]) -> None:
    late = WriteBack(delay=0.01)
    for start in (0, 5):  # what is added once the thread sleeps again wakes it again
        for fd in copies[start : start + 5]:
            late.add(fd)
        eventually(lambda start=start: len(sent) == start + 5)  # type: ignore[misc]
    late.close()
    assert sent == inodes(copies)


def test_the_end_sends_off_what_waits(sent: list[int], copies: list[int]) -> None:
    late = WriteBack(delay=_LONG)
    for fd in copies:
        late.add(fd)
    late.close()
    assert sent == inodes(copies)


def test_nothing_to_do(sent: list[int]) -> None:
    late = WriteBack()
    late.finish()
    late.close()
    assert not sent


def test_finishing_does_not_wait_for_the_delay(sent: list[int], copies: list[int]) -> None:
    late = WriteBack(delay=_LONG)
    for fd in copies:
        late.add(fd)
    late.finish()
    assert sent == inodes(copies)
    late.close()
    assert len(sent) == len(copies)


def test_a_file_that_is_gone_is_left_out(sent: list[int], copies: list[int], tmp_path: Path) -> None:
    late = WriteBack(delay=_LONG)
    for fd in copies:
        late.add(fd)
    (tmp_path / "3").unlink()
    late.finish()
    late.close()
    assert sent == inodes(copies[:3] + copies[4:])


def test_many_copies_do_not_wait(sent: list[int], copies: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "descriptor_share", lambda _: 8)
    late = WriteBack(delay=_LONG)
    for fd in copies[:4]:
        late.add(fd)
    eventually(lambda: len(sent) == 4)
    late.close()


def test_no_more_descriptors_than_its_share(
    sent: list[int], copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_back, "descriptor_share", lambda _: 2)
    late = WriteBack(delay=_LONG)
    with late._taking:  # the thread cannot go on
        for fd in copies:
            late.add(fd)
        assert sent[-8:] == inodes(copies[2:])
    late.close()
    assert sorted(sent) == sorted(inodes(copies))


@pytest.mark.parametrize("missing", ["descriptors", "threads"])
def test_what_cannot_wait_is_sent_off_at_once(
    sent: list[int], copies: list[int], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError if missing == "descriptors" else RuntimeError

    late = WriteBack(delay=_LONG)
    with monkeypatch.context() as patch:
        if missing == "descriptors":
            patch.setattr(os, "dup", fail)
        else:
            patch.setattr(threading.Thread, "start", fail)
        late.add(copies[0])
    assert sent == inodes(copies[:1])
    late.close()


def test_the_thread_takes_no_signals(sent: list[int], copies: list[int]) -> None:
    """One that arrived there would not interrupt the thread that waits for requests."""
    late = WriteBack(delay=_LONG)
    late.add(copies[0])
    (task,) = (thread.native_id for thread in threading.enumerate() if thread.name == "layerfs-write-back")
    blocked = int(Path(f"/proc/self/task/{task}/status").read_text().split("SigBlk:")[1].split()[0], 16)
    assert blocked & 1 << signal.SIGTERM - 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    late.close()
    assert sent
