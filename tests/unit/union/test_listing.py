"""Directories that are read while they change, and what listings take."""

from __future__ import annotations

from itertools import islice

import pytest

from layerfs.union.node import ROOT
from tests.unit.union.conftest import FILES, Work


def test_a_directory_read_while_it_changes(work: Work) -> None:
    union, a = work.union, work.at("a").ino
    for number in range(300):
        work.create("a", f"stay{number}")
    seen: list[str] = []
    place = 0
    churn = 0
    while True:
        taken = [(name, after) for name, _, after in islice(union.readdir(a, place), 7)]
        if not taken:
            break
        seen += [name.decode() for name, _ in taken]
        place = taken[-1][1]
        for _ in range(30):
            work.create("a", f"churn{churn}")
            if churn >= 10:
                union.unlink(a, f"churn{churn - 10}".encode())
            churn += 1
    stays = [name for name in seen if not name.startswith("churn")]
    assert sorted(stays) == sorted([".", "..", "b", "f", "two", *(f"stay{number}" for number in range(300))])


def test_a_directory_of_which_much_is_removed_while_it_is_read(work: Work) -> None:
    """Nothing in an answer means that there is no more, so one may not be empty because names have gone."""
    union, a = work.union, work.at("a").ino
    for number in range(400):
        work.create("a", f"{number:03}")
    seen = [(name.decode(), after) for name, _, after in islice(union.readdir(a, 0), 40)]
    order = [name for name, _ in work.entries("a")]  # places stay as they are
    gone = [name for name in order[40:] if name.isdecimal()][:200]
    stays = set(order) - {".", "..", *gone}
    for name in gone:
        union.unlink(a, name.encode())

    before = 0
    while before != len(seen):
        before = len(seen)
        seen += [(name.decode(), after) for name, _, after in union.readdir(a, seen[-1][1])]
        assert len(seen) - before <= 64
    assert sorted(name for name, _ in seen if name not in {".", ".."}) == sorted(stays)


def test_other_listings_disturb_none(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.union.listing._KEPT", 4)
    union, a = work.union, work.at("a").ino
    stays = [f"stay{number}" for number in range(50)]
    for name in stays:
        work.create("a", name)
        work.create("a", f"gone-{name}")
    seen = [(name, after) for name, _, after in islice(union.readdir(a, 0), 20)]
    for name in stays:
        union.unlink(a, f"gone-{name}".encode())
    for _ in range(3):
        work.entries("/")
        work.entries("a/b")
        work.entries("a")
    seen += [(name, after) for name, _, after in union.readdir(a, seen[-1][1])]
    found = [name for name, _ in seen if not name.startswith(b"gone-")]
    assert sorted(found) == sorted([b".", b"..", b"b", b"f", b"two", *(name.encode() for name in stays)])


def test_what_listings_take_is_bounded(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.union.listing._KEPT", 4)
    for number in range(30):
        work.union.mkdir(ROOT, b"d%d" % number, 0o755, work.caller)
    for number in range(30):
        work.entries(f"d{number}")
        work.entries("opaque")
        work.entries("a/b")
    assert len(work.union._listings) <= 5
    for number in range(30):
        work.union.rmdir(ROOT, b"d%d" % number)
    assert len(work.union._listings) <= 5


def test_what_was_only_at_hand_goes_when_most_is_forgotten(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.union.view._MANY", 10)
    for number in range(30):
        work.create("a", f"new{number}")
    union = work.union

    def shown() -> dict[str, list[tuple[str, int]]]:
        return {
            path: sorted((name, found.ino) for name, found in work.entries(path))
            for path in ("/", "a", "a/b", "opaque")
        }

    before = shown()
    numbers = [*union._nodes, *(ino for entries in before.values() for _, ino in entries)]
    for _ in range(3):  # directories die after what is in them
        union.forget([(number, 1000) for number in numbers])
    assert union.living == 1
    kept = union._listings, getattr(union._lower, "_recent", ()), getattr(union._lower, "_listings", ())
    assert not any(kept)
    assert shown() == before
    assert work.read("a/f") == FILES["a/f"]
