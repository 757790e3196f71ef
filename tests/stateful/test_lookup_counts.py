"""What the union keeps for the kernel is what the kernel knows: each inode as often as it was told of it, and no other.

A model of the kernel lists, looks up, changes and forgets, in whatever order: it may forget a directory before what is
in it. Files that it knows from a listing alone have no node, so their counts stand in two places.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from layerfs.formats.tree import Node, directory
from layerfs.formats.whiteout import USER_PREFIX
from layerfs.union.attribute import Attributes
from layerfs.union.change import Changes
from layerfs.union.node import ROOT
from layerfs.union.union import Union
from layerfs.union.upper import Upper
from tests.unit.union.conftest import Caller, image_of

CONTENT = b"content of a file"
#: Some sort before the dots.
NAMES = [prefix + b"f%d" % number for prefix in (b"-", b"", b".", b"z") for number in range(6)]
names = st.sampled_from([*NAMES, b"new", b"d0", b"d1"])
picks = st.integers(0, 1_000)


CALLER = Caller(os.geteuid(), os.getegid(), umask=0)


class Kernel(RuleBasedStateMachine):
    """The kernel's side: how often it was told of each inode, and what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.known: Counter[int] = Counter()
        self.directories: set[int] = {ROOT}

    @initialize(
        shape=st.lists(st.tuples(picks, st.lists(st.tuples(st.sampled_from(NAMES), picks), max_size=20)), max_size=6)
    )
    def begin(self, shape: list[tuple[int, list[tuple[bytes, int]]]]) -> None:
        """Make an image: each directory lies in an earlier one, and every third file is one that was met before."""
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        root = directory(implicit=False)
        directories, files = [root], list[Node]()
        for number, (above, entries) in enumerate(shape):
            new = directory(implicit=False)
            for name, pick in entries:
                if pick % 3 or not files:
                    files.append(Node(stat.S_IFREG | 0o644))
                    files[-1].device, files[-1].offset, files[-1].size = "0", 512, len(CONTENT)
                    files[-1].uid, files[-1].gid = CALLER.uid, CALLER.gid
                node = files[-1] if pick % 3 else files[pick % len(files)]
                new.children = {**(new.children or {}), name: node}
            parent = directories[above % len(directories)]
            parent.children = {**(parent.children or {}), b"d%d" % number: new}
            directories.append(new)
        for one in directories:
            one.uid, one.gid = CALLER.uid, CALLER.gid
        for place in ("upper", "work"):
            (folder / place).mkdir()
        self.union = Union(
            image_of(root, bytes(512) + CONTENT.ljust(512, b"\0"), folder / "layer.tar"),
            Upper(str(folder / "upper"), str(folder / "work"), USER_PREFIX),
        )
        self.stack.callback(self.union.close)

    def told(self, found: Attributes) -> None:
        self.known[found.ino] += 1
        if stat.S_ISDIR(found.mode):
            self.directories.add(found.ino)

    def directory(self, pick: int) -> int:
        known = sorted(ino for ino in self.directories if ino == ROOT or self.known[ino])
        return known[pick % len(known)]

    def file(self, pick: int) -> int | None:
        known = sorted(ino for ino, count in self.known.items() if count and ino not in self.directories)
        return known[pick % len(known)] if known else None

    def attempt(self, what: Any, *arguments: Any) -> Any:
        """Ask for what may not be possible; but the union knows whatever the kernel knows."""
        try:
            return what(*arguments)
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise
            return None

    @rule(
        pick=picks,
        place=st.sampled_from([0, 0, 0, 2, 4, 9]),
        room=st.sampled_from([1, 2, 3, 7, 99]),
        answers=st.integers(1, 8),
    )
    def enumerate(self, pick: int, place: int, room: int, answers: int) -> None:
        ino = self.directory(pick)
        for _ in range(answers):
            # One more than there is room for is asked for, and does not count.
            for name, found, after in list(islice(self.union.readdir(ino, place), room + 1))[:room]:
                place = after
                if name not in {b".", b".."}:
                    self.told(found)

    @rule(pick=picks, name=names)
    def look_up(self, pick: int, name: bytes) -> None:
        found = self.union.lookup(self.directory(pick), name)
        if found is not None:
            self.told(found)

    @rule(pick=picks)
    def read(self, pick: int) -> None:
        ino = self.file(pick)
        if ino is not None:
            self.union.getattr(ino)
            self.union.read(ino, 0, 5)

    @rule(pick=picks, mode=st.booleans())
    def change(self, pick: int, mode: bool) -> None:
        ino = self.file(pick)
        if ino is not None and mode:
            self.union.setattr(ino, Changes(mode=0o600))
        elif ino is not None:
            self.union.write(ino, 0, b"changed")

    @rule(pick=picks, name=names)
    def unlink(self, pick: int, name: bytes) -> None:
        self.attempt(self.union.unlink, self.directory(pick), name)

    @rule(pick=picks, name=names)
    def create(self, pick: int, name: bytes) -> None:
        found = self.attempt(self.union.create, self.directory(pick), name, 0o644, CALLER)
        if found is not None:
            self.told(found)

    @rule(old=picks, new=picks, name=names, other=names)
    def rename(self, old: int, new: int, name: bytes, other: bytes) -> None:
        self.attempt(self.union.rename, self.directory(old), name, self.directory(new), other, 0)

    @rule(picks=st.lists(st.tuples(picks, picks), max_size=30), all_of_it=st.booleans())
    def forget(self, picks: Any, all_of_it: bool) -> None:
        for pick, count in picks:
            known = sorted(ino for ino in self.known if self.known[ino])
            if known:
                ino = known[pick % len(known)]
                forgotten = self.known[ino] if all_of_it else 1 + count % self.known[ino]
                self.union.forget([(ino, forgotten)])
                self.known[ino] -= forgotten

    @invariant()
    def counts_are_the_kernels(self) -> None:
        if not hasattr(self, "union"):
            return
        nodes = self.union._nodes
        kept = Counter({ino: node.lookups for ino, node in nodes.items() if node.lookups})
        for told in (told for block in nodes.told._told for told in block):
            assert nodes.get(told.node.ino) is told.node
            filled = list(told.numbers[: told.filled])
            assert filled == sorted(filled)
            for number, count in zip(told.numbers, told.counts, strict=True):
                if count:
                    assert number not in nodes
                    kept[number] += count
        assert kept == +self.known

    def teardown(self) -> None:
        if hasattr(self, "union"):
            self.union.forget(sorted(self.known.items(), key=lambda item: hash(str(item))))
            assert set(self.union._nodes) == {ROOT}
        self.stack.close()


def test_counts_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.union.told._BLOCK", 3)
    monkeypatch.setattr("layerfs.union.told._MANY", 5)
    before = os.umask(0)
    try:
        run_state_machine_as_test(Kernel, settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
        ))  # fmt: skip
    finally:
        os.umask(before)
