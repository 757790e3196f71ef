"""Locks between holders: exclusion, sharing, deletion of the lock file, waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layerfs.linux.lock import FileLock


def test_exclusive_excludes_inside_one_process(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "l"), FileLock(tmp_path / "l")
    with first:
        assert not second.try_acquire()
        assert [first.held, second.held] == [True, False]
    assert [first.held, second.held] == [False, False]
    assert second.try_acquire()
    second.release()
    second.release()


def test_shared_admits_shared_only(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path / "l", shared=True), FileLock(tmp_path / "l", shared=True)
    three = FileLock(tmp_path / "l")
    with one, two:
        assert not three.try_acquire()
        with pytest.raises(ValueError, match="shared"):
            one.release(remove=True)


def test_a_held_lock_is_not_taken_twice(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "l")
    with lock, pytest.raises(OSError, match="already held"):
        lock.acquire()


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l"
    program = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not FileLock(path).try_acquire()
        process.kill()
        process.wait()
    lock = FileLock(path)
    assert lock.try_acquire()
    lock.release()


def test_check_is_polled_while_waiting(tmp_path: Path) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    with FileLock(tmp_path / "l"):
        waiting = FileLock(tmp_path / "l", check=check)
        with pytest.raises(InterruptedError):
            waiting.acquire()
    assert calls == 3
    assert not waiting.held


@pytest.mark.parametrize("poll", [True, False])
def test_a_waiter_never_gets_a_deleted_file(tmp_path: Path, poll: bool) -> None:
    path = tmp_path / "l"
    holder = FileLock(path)
    holder.acquire()
    entered = threading.Event()
    waiter = FileLock(path, check=entered.set if poll else None)
    thread = threading.Thread(target=waiter.acquire)
    thread.start()
    if poll:
        assert entered.wait(10)
    holder.release(remove=True)
    thread.join(10)
    assert waiter.held
    # The lock that the waiter got is on the file that others will find.
    assert not FileLock(path).try_acquire()
    waiter.release(remove=True)
    assert not path.exists()


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = FileLock(tmp_path / "l")
    with held:
        for _ in range(10):
            assert not FileLock(tmp_path / "l").try_acquire()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_symbolic_link_is_no_lock_file(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(tmp_path / "l").acquire()
