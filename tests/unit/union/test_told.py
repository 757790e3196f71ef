"""Files of an image that the kernel knows from a listing alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EIO, ESTALE
from itertools import islice
from pathlib import Path

import pytest

from layerfs.formats.tree import Node, directory
from layerfs.formats.whiteout import USER_PREFIX
from layerfs.linux.inode_flags import FLAGS
from layerfs.union.change import Changes
from layerfs.union.node import ROOT
from layerfs.union.union import Union
from layerfs.union.upper import Upper
from tests.unit.union.conftest import Caller, Work, failing, image_of

#: One of them comes before the dots, and they fill many blocks.
NAMES = [b"-before", *(b"f%03d" % number for number in range(200))]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    """``d`` and ``e`` with a file per name each, and one file that both have."""
    content = b"content of a file"
    root = directory(implicit=False)

    def regular() -> Node:
        node = Node(0o100644, mtime=1_000_000_000)
        node.uid = node.gid = os.geteuid()
        node.device, node.offset, node.size = "0", 512, len(content)
        return node

    shared = regular()
    many = directory(implicit=False)
    many.children = {b"f%02d" % number: regular() for number in range(40)}
    # Met in d first, so their numbers are lower than those of their neighbours.
    linked = {b"f%02d-linked" % number: regular() for number in range(0, 40, 3)}
    many.children |= linked
    link = Node(0o120777)
    link.target = b"f000"
    assert root.children is not None
    for name in (b"d", b"e"):
        below = root.children[name] = directory(implicit=False)
        below.uid = below.gid = os.geteuid()
        below.children = {one: regular() for one in NAMES} | {b"f100-shared": shared, b"sub": directory(implicit=False)}
    root.children[b"l"] = links_first = directory(implicit=False)
    links_first.children = linked
    root.children[b"many"] = many
    links = root.children[b"links"] = directory(implicit=False)
    links.children = {b"link": link}
    lower = image_of(root, bytes(512) + content.ljust(512, b"\0"), tmp_path / "layer.tar")
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    union = Union(lower, Upper(str(tmp_path / "upper"), str(tmp_path / "work"), USER_PREFIX))
    yield Work(union, tmp_path / "upper", Caller(os.geteuid(), os.getegid()))
    union.close()


def test_a_listing_makes_nodes_of_directories_and_files_with_links_alone(work: Work) -> None:
    known = {name for name, _ in work.entries("d")}
    assert known == {".", "..", "sub", "f100-shared", *(name.decode() for name in NAMES)}
    assert work.union.living == 4  # the root, d, and those two


def test_a_file_is_asked_for_by_the_number_of_its_listing(work: Work) -> None:
    for name, found in work.entries("d"):
        if name not in {".", ".."}:
            assert work.union.getattr(found.ino) == found == work.find(f"d/{name}")


def test_who_only_reads_makes_no_node(work: Work) -> None:
    union = work.union
    numbers = {name: found.ino for name, found in [*work.entries("e"), *work.entries("links")]}
    before = union.living
    for _ in range(2):
        assert union.read(numbers["f007"], 8, 99) == b"of a file"
        assert union.readlink(numbers["link"]) == b"f000"
        assert union.find_xattr(numbers["f007"], b"security.capability") is None
        assert not union.listxattr(numbers["f007"], lambda: True)
        assert union.seek(numbers["f007"], 3, os.SEEK_HOLE) == 17
        assert union.flags(numbers["f007"], FLAGS) == bytes(FLAGS.size)
        assert union.getattr(numbers["f007"]).nlink == 1
    with failing(EIO):
        union.read(numbers["link"], 0, 1)
    assert union.living == before
    union.write(numbers["f007"], 0, b"C")
    assert union.living == before + 1
    assert union.read(numbers["f007"], 0, 4) == b"Cont"


def test_it_lives_as_long_as_the_kernel_remembers_it(work: Work) -> None:
    for asked_before in (False, True):
        numbers = dict(work.entries("d"))
        work.entries("d")
        ino = numbers["f007"].ino
        if asked_before:
            work.union.getattr(ino)
        work.union.forget([(ino, 1)])
        assert work.union.getattr(ino).size == 17
        work.union.forget([(ino, 1)])
        with failing(ESTALE):
            work.union.getattr(ino)


def test_a_listing_counts_for_a_file_that_was_asked_for(work: Work) -> None:
    ino = dict(work.entries("d"))["f007"].ino
    work.union.getattr(ino)
    work.entries("d")
    work.at("d/f007")
    work.union.forget([(ino, 2)])
    work.union.getattr(ino)
    work.union.forget([(ino, 1)])
    with failing(ESTALE):
        work.union.getattr(ino)


def test_an_entry_that_found_no_room_is_not_counted(work: Work) -> None:
    *_, last, untaken = islice(work.union.readdir(work.at("d").ino, 0), 12)
    assert work.union.getattr(last[1].ino) == last[1]
    with failing(ESTALE):
        work.union.getattr(untaken[1].ino)


@pytest.mark.parametrize("room", range(1, 12))
def test_files_between_links_are_found_wherever_an_answer_ends(work: Work, room: int) -> None:
    union, ino = work.union, work.at("many").ino
    place, seen = 0, []
    while taken := list(islice(union.readdir(ino, place), room + 1))[:room]:
        seen += taken
        place = taken[-1][2]
    assert [name for name, *_ in seen] == [name.encode() for name, _ in work.entries("many")]
    for name, found, _ in seen:
        if name not in {b".", b".."}:
            assert union.getattr(found.ino) == found
    told = union._nodes[ino].told
    assert told is not None
    assert list(told.numbers) == sorted(told.numbers)


def test_a_directory_lives_as_long_as_the_kernel_knows_a_file_in_it(work: Work) -> None:
    """It may forget the directory first: an inode that is watched outlives its names."""
    union, d = work.union, work.at("d").ino
    ino = dict(work.entries("d"))["f007"].ino
    union.forget([(d, 100)])
    assert union.read(ino, 0, 7) == b"content"
    work.entries("d")
    union.forget([(ino, 1)])
    assert union.getattr(ino).size == 17
    union.forget([(ino, 1)])
    with failing(ESTALE):
        union.getattr(ino)


def test_reading_begins_anywhere(work: Work) -> None:
    whole = list(work.union.readdir(work.at("e").ino, 0))
    for start in (150, 3, 203, 77):
        assert next(iter(work.union.readdir(work.at("d").ino, whole[start][2])))[0] == whole[start + 1][0]
    assert not list(work.union.readdir(work.at("d").ino, whole[-1][2]))
    names = {name for name, *_ in work.union.readdir(work.at("d").ino, 0)}
    assert names == {name for name, *_ in whole}


def test_reading_goes_on_where_the_directory_was_copied_up_meanwhile(work: Work) -> None:
    ino = work.at("d").ino
    seen = list(islice(work.union.readdir(ino, 0), 100))
    work.create("d", "new")
    while more := list(work.union.readdir(ino, seen[-1][2])):
        seen += more
    names = [name for name, *_ in seen]
    assert sorted(names) == sorted([b".", b"..", b"sub", b"f100-shared", b"new", *NAMES])


def test_a_file_known_from_a_listing_is_changed_moved_and_removed(work: Work) -> None:
    union, d = work.union, work.at("d").ino
    numbers = {name: found.ino for name, found in work.entries("d")}
    assert union.write(numbers["f001"], 0, b"CONTENT") == 7
    union.setattr(numbers["f002"], Changes(mode=0o600))
    union.rename(d, b"f003", ROOT, b"moved", 0)
    union.unlink(d, b"f004")
    union.link(numbers["f005"], ROOT, b"linked")
    assert union.read(numbers["f001"], 0, 99) == work.read("d/f001") == b"CONTENT of a file"
    assert (work.upper / "d/f001").read_bytes() == b"CONTENT of a file"
    assert work.at("d/f002").mode == 0o100600
    assert work.at("moved").ino == numbers["f003"]
    assert work.find("d/f003") is None
    assert union.getattr(numbers["f004"]).nlink == 0  # somebody may have it open
    assert union.read(numbers["f004"], 0, 99) == b"content of a file"
    assert union.getattr(numbers["f005"]).nlink == 2
    assert len(work.names("d")) == len(numbers) - 2 - 2


def test_a_removed_file_is_let_go_when_it_is_forgotten(work: Work) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        numbers = dict(work.entries("d"))
    union, ino = work.union, numbers["f004"].ino
    union.write(ino, 0, b"x")
    union.unlink(work.at("d").ino, b"f004")
    union.forget([(ino, 2)])
    assert union.read(ino, 0, 1) == b"x"
    union.forget([(ino, 1)])
    with failing(ESTALE):
        union.getattr(ino)
    union.close_spare()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the thread of copies may have one yet


def test_a_forgotten_directory_takes_what_is_in_it_along(work: Work) -> None:
    for path in ("d", "e"):
        work.entries(path)
    union = work.union
    inside = {name: found.ino for name, found in work.entries("d") if name not in {".", ".."}}
    d = work.at("d").ino
    union.forget((ino, 100) for ino in inside.values())
    union.forget([(d, 100)])
    for ino in (d, inside["f000"], inside["sub"]):
        with failing(ESTALE):
            union.getattr(ino)
    assert dict(work.entries("d"))["f000"].ino == inside["f000"]
    assert union.getattr(inside["f000"]).size == 17
    assert len(dict(work.entries("e"))) == len(inside) + 2
