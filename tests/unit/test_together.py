"""Blocking functions side by side."""

from __future__ import annotations

import threading

import pytest

from layerfs.api.together import each, run_together
from layerfs.registry.watch import Stopped


class Tasks:
    """Functions that wait for each other, and notice that they are stopped."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.ended: list[str] = []

    def waits(self) -> None:
        assert self.stopped.wait(10)
        self.ended.append("waits")
        raise Stopped

    def fails(self) -> None:
        raise ValueError("first")

    def fails_when_stopped(self) -> None:
        assert self.stopped.wait(10)
        raise OSError("second")


def test_all_run_at_the_same_time() -> None:
    barrier, done = threading.Barrier(3, timeout=10), []

    def meet() -> None:
        barrier.wait()
        done.append(threading.current_thread().name)

    run_together([meet, meet, meet], lambda: None)
    assert done == ["layerfs-task"] * 3
    run_together([], lambda: None)


def test_the_first_error_counts_and_stops_the_others() -> None:
    tasks = Tasks()
    with pytest.raises(ValueError, match="first") as caught:
        run_together([tasks.waits, tasks.fails, tasks.fails_when_stopped], tasks.stopped.set)
    assert tasks.ended == ["waits"]
    assert caught.value.__notes__ == ["also: second"]


def test_one_that_was_stopped_does_not_stop_the_one_that_did_it() -> None:
    leaving, cut = threading.Event(), threading.Event()

    def lays_down() -> None:
        leaving.set()  # the others stop, and this one cleans up before it says why
        assert not cut.wait(0.3)
        raise OSError("disk full")

    def receives() -> None:
        assert leaving.wait(10)
        raise Stopped

    with pytest.raises(OSError, match="disk full") as caught:
        run_together([lays_down, receives], cut.set)
    assert not hasattr(caught.value, "__notes__")


def test_what_check_raises_ends_them_all() -> None:
    tasks = Tasks()

    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_together([tasks.waits, tasks.waits], tasks.stopped.set, check)
    assert tasks.ended == ["waits", "waits"]


def test_the_same_for_several_items() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def square(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            if number < 2:
                both.wait()
            return number * number
        finally:
            with lock:
                running -= 1

    both = threading.Barrier(2, timeout=10)
    assert each(square, range(20), 2, lambda: None) == [number * number for number in range(20)]
    assert most == 2
    assert each(square, [], 2, lambda: None) == []


def test_no_item_is_begun_after_a_failure() -> None:
    stopped, begun = threading.Event(), []

    def work(number: int) -> None:
        begun.append(number)
        if number:
            raise OSError("disk full")
        assert stopped.wait(10)
        raise Stopped

    with pytest.raises(OSError, match="disk full"):
        each(work, range(9), 2, stopped.set)
    assert stopped.is_set()
    assert sorted(begun) == [0, 1]


def test_the_caller_gives_several_items_up() -> None:
    stopped, begun = threading.Event(), []

    def work(number: int) -> None:
        begun.append(number)
        assert stopped.wait(10)

    def check() -> None:
        if len(begun) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each(work, range(9), 3, stopped.set, check)
    assert stopped.is_set()
    assert sorted(begun) == [0, 1, 2]
