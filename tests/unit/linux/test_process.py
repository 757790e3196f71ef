"""Processes by number: told from those that had the number before, and waited for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from layerfs.linux.process import groups_of, may_give_away, start_of, wait_for_end


def test_a_process_that_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = start_of(process.pid)
        assert started is not None
        assert not wait_for_end(process.pid, 0, started=started)
        assert wait_for_end(process.pid, 0, started=started - 1)  # that one had the number before
        assert process.stdin is not None
        process.stdin.close()
        assert wait_for_end(process.pid, 10, started=started)
    assert start_of(process.pid) is None
    assert wait_for_end(process.pid, 0)


def test_the_name_of_a_command_may_look_like_the_rest() -> None:
    name = ") R 1 1 1"
    with subprocess.Popen(
        [sys.executable, "-c", f"open('/proc/self/comm', 'w').write({name!r}); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        before = start_of(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        assert start_of(process.pid) == before
        process.communicate(b"")


def test_what_this_process_is_and_may() -> None:
    assert groups_of(os.getpid()) == set(os.getgroups())
    assert groups_of(0x3FFFFFFF) == set()
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    assert may_give_away() == (os.geteuid() == 0 and any(first <= 1 < first + count for first, count in ranges))


@pytest.mark.needs_root
@pytest.mark.parametrize("user", [1, 2, 1000])
def test_giving_a_file_to_oneself_is_no_privilege(user: int) -> None:
    child = os.fork()
    if not child:  # not through exec: another user may not be able to enter the directory of this Python
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os._exit(may_give_away())
    assert os.waitpid(child, 0) == (child, 0)
