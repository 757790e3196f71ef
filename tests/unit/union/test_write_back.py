"""When copies are written back, and that none is forgotten."""

from __future__ import annotations

import errno
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


class Device:
    """Takes the place of the disk: notes what is sent off and waited for, by inode number."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.waited: list[int] = []
        self.broken: set[int] = set()
        self.refused: set[int] = set()
        self.running = threading.Event()
        self.running.set()

    def start(self, fd: int) -> None:
        self.sent.append(os.fstat(fd).st_ino)
        if self.sent[-1] in self.refused:
            raise OSError(errno.ENOSPC, "full")

    def wait(self, fd: int) -> None:
        assert self.running.wait(10)
        number = os.fstat(fd).st_ino
        assert number in self.sent
        self.waited.append(number)
        if number in self.broken:
            raise OSError(errno.EIO, "broken")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(write_back, "start_writeback", made.start)
    monkeypatch.setattr(write_back, "await_writeback", made.wait)
    return made


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[list[int]]:
    """Descriptors of new files; nothing else stays open."""
    fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(10)]
    before = sorted(os.listdir("/proc/self/fd"))
    yield fds
    assert sorted(os.listdir("/proc/self/fd")) == before
    for fd in fds:
        os.close(fd)


def inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


def add(late: WriteBack, fds: list[int]) -> None:
    for fd in fds:
        late.add(fd, fd)


def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_copies_are_written_by_themselves(device: Device, copies: list[int]) -> None:
    late = WriteBack(delay=0.01)
    for start in (0, 5):  # what is added once the thread sleeps again wakes it again
        add(late, copies[start : start + 5])
        eventually(lambda start=start: len(device.waited) == start + 5)  # type: ignore[misc]
    late.close()
    assert device.sent == device.waited == inodes(copies)


def test_the_end_sends_off_what_waits(device: Device, copies: list[int]) -> None:
    late = WriteBack(delay=_LONG)
    add(late, copies)
    late.close()
    assert device.sent == inodes(copies)
    assert not device.waited


def test_the_end_does_not_wait_for_a_device_that_stands(
    device: Device, copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_back, "_LAST", 0.05)
    device.running.clear()
    late = WriteBack(delay=0.01)
    add(late, copies[:1])
    eventually(lambda: len(device.sent) == 1)
    add(late, copies[1:])
    late.close()
    assert not device.waited
    device.running.set()  # for the thread, which must let go of its descriptors
    eventually(lambda: not [one for one in threading.enumerate() if one.name == "layerfs-write-back"])


def test_nothing_to_do(device: Device) -> None:
    late = WriteBack()
    late.finish()
    late.drop(1)
    late.close()
    assert not device.sent


def test_finishing_waits_for_the_device_and_not_for_the_delay(device: Device, copies: list[int]) -> None:
    late = WriteBack(delay=_LONG)
    add(late, copies)
    late.finish()
    assert device.sent == device.waited == inodes(copies)
    late.close()
    assert len(device.sent) == len(copies)


def test_finishing_waits_for_what_the_thread_has_sent_off(device: Device, copies: list[int]) -> None:
    device.running.clear()
    late = WriteBack(delay=0.01)
    add(late, copies)
    eventually(lambda: len(device.sent) == len(copies))
    threading.Timer(0.1, device.running.set).start()
    late.finish()
    assert device.waited == inodes(copies)
    late.close()


def test_a_copy_that_lost_its_name_is_let_go_at_once(device: Device, copies: list[int]) -> None:
    late = WriteBack(delay=_LONG)
    before = len(os.listdir("/proc/self/fd"))
    add(late, copies)
    for fd in copies[2:]:
        late.drop(fd)
    late.drop("another")
    assert len(os.listdir("/proc/self/fd")) == before + 2
    late.finish()
    late.close()
    assert device.sent == inodes(copies[:2])


def test_what_went_wrong_is_told_once_and_of_that_file(
    device: Device, copies: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    late = WriteBack(delay=_LONG)
    device.broken = set(inodes(copies[3:4]))
    add(late, copies)
    late.finish()
    assert "could not be written to the disk: broken" in caplog.text  # nobody may ever ask
    late.raise_failure(copies[2])
    with pytest.raises(OSError, match="Input/output error"):
        late.raise_failure(copies[3])
    late.raise_failure(copies[3])
    late.add("another", copies[3])
    late.finish()
    late.drop("another")  # its number may come to mean another file
    late.raise_failure("another")
    late.close()
    del device.waited[-1]
    assert device.waited == inodes(copies)  # those behind it are not left out


def test_what_is_told_at_the_start_counts_too(device: Device, copies: list[int]) -> None:
    late = WriteBack(delay=_LONG)
    device.refused = set(inodes(copies[3:4]))
    add(late, copies)
    late.finish()
    with pytest.raises(OSError, match="No space left"):
        late.raise_failure(copies[3])
    late.close()


def test_many_copies_do_not_wait(device: Device, copies: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "descriptor_share", lambda _: 16)
    late = WriteBack(delay=_LONG)
    add(late, copies[:4])
    eventually(lambda: len(device.waited) == 4)
    late.close()


def test_no_more_descriptors_than_its_share(device: Device, copies: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "descriptor_share", lambda _: 4)
    monkeypatch.setattr(WriteBack, "_run", lambda _: None)
    late = WriteBack()
    before = len(os.listdir("/proc/self/fd"))
    for fd in copies:
        late.add(fd, fd)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert device.waited == inodes(copies[:8])
    late.close()


@pytest.mark.parametrize("missing", ["descriptors", "threads"])
def test_what_cannot_wait_is_written_at_once(
    device: Device, copies: list[int], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError if missing == "descriptors" else RuntimeError

    late = WriteBack(delay=_LONG)
    device.sent = inodes(copies)  # waiting includes sending
    with monkeypatch.context() as patch:
        if missing == "descriptors":
            patch.setattr(os, "dup", fail)
        else:
            patch.setattr(threading.Thread, "start", fail)
        late.add(0, copies[0])
    assert device.waited == inodes(copies[:1])
    late.close()


def test_an_error_of_closing_ends_nothing(device: Device, copies: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "as network file systems do")

    late = WriteBack(delay=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        add(late, copies[:5])
        eventually(lambda: len(device.waited) == 5)
        add(late, copies[5:])
        late.finish()
    late.close()
    assert device.waited == inodes(copies)


def writer() -> threading.Thread | None:
    """The thread that writes copies back."""
    return next((thread for thread in threading.enumerate() if thread.name == "layerfs-write-back"), None)


def test_the_thread_sleeps_until_there_is_a_copy_again(device: Device, copies: list[int]) -> None:
    late = WriteBack(delay=0.001)
    add(late, copies)
    eventually(lambda: len(device.waited) == len(copies))
    thread = writer()
    assert thread is not None
    path = Path(f"/proc/self/task/{thread.native_id}/status")

    def switches() -> int:
        return int(path.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])

    time.sleep(0.05)  # it may have to look once more
    before = switches()
    time.sleep(0.2)
    assert switches() == before
    late.close()


def test_the_end_waits_for_the_thread(device: Device, copies: list[int]) -> None:
    device.running.clear()
    late = WriteBack(delay=0.001)
    add(late, copies[:1])  # of several the thread might take the first alone
    eventually(lambda: len(device.sent) == 1)
    timer = threading.Timer(0.1, device.running.set)
    timer.start()
    late.close()
    assert writer() is None
    assert device.waited == inodes(copies[:1])
    timer.join()


def test_the_thread_takes_no_signals(device: Device, copies: list[int]) -> None:
    """One that arrived there would not interrupt the thread that waits for requests."""
    late = WriteBack(delay=_LONG)
    add(late, copies[:1])
    thread = writer()
    assert thread is not None
    blocked = int(Path(f"/proc/self/task/{thread.native_id}/status").read_text().split("SigBlk:")[1].split()[0], 16)
    assert blocked & 1 << signal.SIGTERM - 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    late.close()
    assert device.sent


def test_two_files_of_one_key_are_both_written(tmp_path: Path) -> None:
    late = WriteBack(delay=60)
    before = len(os.listdir("/proc/self/fd"))
    for name in ("one", "two"):
        fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 5000)
        late.add(1, fd)
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    late.close()
    assert len(os.listdir("/proc/self/fd")) == before
