"""Files with several names: a copy gets its other names when they are looked for, or when there is room."""

from __future__ import annotations

import os
import stat
from errno import ENOSPC, EPERM

import pytest

from layerfs.linux.rename import EXCHANGE
from layerfs.union.change import Changes
from layerfs.union.node import ROOT
from tests.unit.union.conftest import FILES, Work, failing


def _no_room(*_: object, **__: object) -> None:
    raise OSError(ENOSPC, os.strerror(ENOSPC))


def test_a_copy_whose_other_name_found_no_room(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    one = work.at("one")
    with monkeypatch.context() as full:
        full.setattr(os, "link", _no_room)
        work.union.write(one.ino, 0, b"NEW")
        two = work.at("a/two")  # whoever looks is not kept from it
        assert (two.ino, work.read("a/two")) == (one.ino, b"NEWked")
    assert work.read("a/two") == b"NEWked"
    assert (work.upper / "a/two").samefile(work.upper / "one")  # it was linked when there was room


@pytest.mark.parametrize("listed", [False, True])
def test_a_copy_does_not_die_before_its_other_names_found_room(
    work: Work, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    before = work.union.living
    with monkeypatch.context() as full:
        full.setattr(os, "link", _no_room)
        two = work.at("a/two")
        work.union.write(two.ino, 0, b"NEW")  # the copy has the name that was met first
        for number in (two.ino, work.at("a").ino):
            work.union.forget([(number, 1000)])
        if listed:
            work.entries("a")
        one = work.at("one")
        assert (one.ino, work.read("one"), work.read("a/two")) == (two.ino, b"NEWked", b"NEWked")
        work.union.write(one.ino, 0, b"one")
        work.union.forget([(one.ino, 1000)])
        assert (work.read("one"), work.read("a/two")) == (b"oneked", b"oneked")
    assert work.read("one") == b"oneked"
    assert (work.upper / "one").samefile(work.upper / "a/two")
    for _ in range(2):  # directories after what is in them
        work.union.forget([(number, 1000) for number in list(work.union._nodes)])
    assert work.union.living == before


def test_a_copy_that_goes_before_its_other_names_found_room_dies(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    before = work.union.living
    one = work.at("one")
    with monkeypatch.context() as full:
        full.setattr(os, "link", _no_room)
        work.union.write(one.ino, 0, b"NEW")
        work.union.unlink(ROOT, b"one")
    work.union.forget([(one.ino, 1000)])
    assert work.union.living == before


def test_removing_and_exchanging_names_that_cannot_be_linked(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(EPERM, os.strerror(EPERM))

    one, top = work.at("one"), work.at("top")
    with monkeypatch.context() as full:
        full.setattr(os, "link", _no_room)
        work.union.write(one.ino, 0, b"NEW")
        with failing(ENOSPC):
            work.union.rename(work.at("a").ino, b"two", ROOT, b"top", EXCHANGE)
        full.setattr(os, "link", refused)
        work.union.unlink(ROOT, b"one")
    assert work.find("one") is None
    work.union.rename(work.at("a").ino, b"two", ROOT, b"top", EXCHANGE)
    assert (work.read("a/two"), work.read("top")) == (FILES["top"], b"linked")
    assert top.ino == work.at("a/two").ino


@pytest.mark.parametrize("room", [False, True])
def test_a_copy_that_is_removed_before_its_other_name_found_room(
    work: Work, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    union, one = work.union, work.at("one")
    with monkeypatch.context() as full:
        full.setattr(os, "link", _no_room)
        union.write(one.ino, 0, b"NEW")
        if not room:
            union.unlink(ROOT, b"one")
    if room:
        union.unlink(ROOT, b"one")
    two = work.at("a/two")
    assert (two.ino == one.ino) == room
    assert work.read("a/two") == (b"NEWked" if room else b"linked")
    assert union.write(two.ino, 0, b"more") == 4
    for _ in range(2):
        assert work.at("a/two").ino == dict(work.entries("a"))["two"].ino == two.ino
    assert union.read(one.ino, 0, 9) == (b"moreed" if room else b"NEWked")  # it is still open
    union.forget([(one.ino, 1000)])
    if not room:
        assert work.at("a/two").ino == two.ino
    union.forget([(two.ino, 1000)])
    assert work.read("a/two") == (work.upper / "a/two").read_bytes() == b"moreed"


def test_a_name_whose_way_leads_through_what_is_no_directory_any_more(work: Work) -> None:
    """The lower tree's other name lies below a directory that another layer, or the upper, has a file for."""
    (work.upper / "a").write_text("a file")
    (work.upper / "b").mkdir()
    one = work.at("one")
    assert work.union.write(one.ino, 0, b"NEW") == 3
    work.create("b", "new")
    assert work.read("one") == b"NEWked"
    assert work.read("a") == b"a file"
    assert sorted(os.listdir(work.upper)) == ["a", "b", "one"]


def test_a_file_that_seemed_gone_has_its_other_name(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name went without a copy, for which there was no room, while somebody had it open."""
    union, one = work.union, work.at("one")
    with monkeypatch.context() as full:
        full.setattr("layerfs.union.base.copy_inode", _no_room)
        union.unlink(ROOT, b"one")
    assert dict(work.entries("a"))["two"].ino == one.ino
    two = work.at("a/two")
    assert two.ino == one.ino
    union.setattr(two.ino, Changes(size=0))
    assert union.write(two.ino, 0, b"new content") == 11
    union.forget([(one.ino, 1000)])
    assert work.read("a/two") == (work.upper / "a/two").read_bytes() == b"new content"


def test_directories_on_the_way_to_other_names_are_let_go(work: Work) -> None:
    (work.upper / "a").mkdir()
    os.mknod(work.upper / "a/two", stat.S_IFCHR, 0)  # removed in an earlier mount
    before = work.union.living
    one = work.at("one")
    work.union.write(one.ino, 0, b"x")
    work.union.forget([(one.ino, 1000)])
    assert work.union.living <= before
