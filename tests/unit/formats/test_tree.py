"""The tree of one layer: what entries, parents, links and whiteouts come to, in any order."""

from __future__ import annotations

import itertools
import os
import stat
import time
import tracemalloc

import pytest

from layerfs.errors import FormatError, LimitExceeded, UnsafePath
from layerfs.formats.tar.member import Member
from layerfs.formats.tree import MAX_IMPLICIT, MAX_TEXT, LayerTree, Node
from layerfs.formats.whiteout import IMPLICIT_XATTR, LINK_XATTR, OPAQUE_XATTR
from tests.unit.formats.raw_tar import END, entry, header, layer, pad, pax


def directory(name: bytes, mode: int = 0o755) -> bytes:
    return header(name, b"5", mode=mode)


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", link=target)


def hard_link(name: bytes, target: bytes) -> bytes:
    return header(name, b"1", link=target)


def tree(*entries: bytes) -> Node:
    return layer(b"".join(entries) + END)


def describe(node: Node, name: bytes = b"") -> dict[bytes, str]:
    """Return every path with a word about it."""
    found: dict[bytes, str] = {}
    stack = [(name, node)]
    while stack:
        path, here = stack.pop()
        xattrs = here.xattrs or {}
        if here.children is not None:
            marks = [word for word, yes in (("implicit", here.is_implicit), ("opaque", here.is_opaque)) if yes]
            found[path or b"/"] = " ".join(["dir", *marks])
            stack += [(path + b"/" + leaf, child) for leaf, child in here.children.items()]
        elif here.is_whiteout:
            found[path] = "whiteout"
        elif LINK_XATTR in xattrs:
            found[path] = f"link {xattrs[LINK_XATTR].decode()}"
        elif here.target is not None:
            found[path] = f"-> {here.target.decode()}"
        else:
            found[path] = {stat.S_IFREG: f"file {here.size}"}.get(stat.S_IFMT(here.mode), "special")
    return found


ROOT = {b"/": "dir implicit"}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], ROOT),
        ([directory(b"./")], {b"/": "dir"}),
        ([directory(b"/")], {b"/": "dir"}),
        ([entry(b"a/b/f", b"x")], ROOT | {b"/a": "dir implicit", b"/a/b": "dir implicit", b"/a/b/f": "file 1"}),
        ([entry(b"a/f"), directory(b"a")], ROOT | {b"/a": "dir", b"/a/f": "file 0"}),
        ([directory(b"a/"), entry(b"./a//f"), entry(b"/a/./g")],
         ROOT | {b"/a": "dir", b"/a/f": "file 0", b"/a/g": "file 0"}),
        # the last one wins
        ([entry(b"f", b"one"), entry(b"f", b"three")], ROOT | {b"/f": "file 5"}),
        ([entry(b"a/f"), entry(b"a", b"x")], ROOT | {b"/a": "file 1"}),
        ([entry(b"a"), directory(b"a"), entry(b"a/f")], ROOT | {b"/a": "dir opaque", b"/a/f": "file 0"}),
        ([directory(b"a"), entry(b"a/f"), directory(b"a")], ROOT | {b"/a": "dir", b"/a/f": "file 0"}),
        ([entry(b"f"), symlink(b"f", b"t")], ROOT | {b"/f": "-> t"}),
        ([symlink(b"l", b"d"), directory(b"l"), entry(b"l/f")], ROOT | {b"/l": "dir opaque", b"/l/f": "file 0"}),
        # a name that ends in a slash or a dot is the same name, and no parent of it
        ([entry(b"f/")], ROOT | {b"/f": "file 0"}),
        ([symlink(b"a/", b"d"), entry(b"a/f")], ROOT | {b"/a": "-> d", b"/d": "dir implicit", b"/d/f": "file 0"}),
        ([symlink(b"a/.", b"d"), entry(b"a/f")], ROOT | {b"/a": "-> d", b"/d": "dir implicit", b"/d/f": "file 0"}),
        ([directory(b"a/."), entry(b"a/f")], ROOT | {b"/a": "dir", b"/a/f": "file 0"}),
        ([directory(b"a/b/./"), entry(b"a/b/f")], ROOT | {b"/a": "dir implicit", b"/a/b": "dir", b"/a/b/f": "file 0"}),
        # through symlinks of this layer, and never out of it
        ([directory(b"d"), symlink(b"l", b"d"), entry(b"l/f")],
         ROOT | {b"/d": "dir", b"/d/f": "file 0", b"/l": "-> d"}),
        ([symlink(b"l", b"/d"), entry(b"l/f")],
         ROOT | {b"/d": "dir implicit", b"/d/f": "file 0", b"/l": "-> /d"}),
        ([symlink(b"l", b"../../d"), entry(b"l/f")],
         ROOT | {b"/d": "dir implicit", b"/d/f": "file 0", b"/l": "-> ../../d"}),
        ([symlink(b"a/l", b"../b"), entry(b"a/l/f")],
         ROOT | {b"/a": "dir implicit", b"/a/l": "-> ../b", b"/b": "dir implicit", b"/b/f": "file 0"}),
        ([symlink(b"l", b"/"), entry(b"l/f")], ROOT | {b"/l": "-> /", b"/f": "file 0"}),
        ([symlink(b"l", b".."), symlink(b"m", b"l/l/l"), entry(b"m/f")],
         ROOT | {b"/l": "-> ..", b"/m": "-> l/l/l", b"/f": "file 0"}),
        # a remembered parent is forgotten when it is replaced
        ([directory(b"d"), entry(b"d/f"), symlink(b"d", b"e"), entry(b"d/g")],
         ROOT | {b"/d": "-> e", b"/e": "dir implicit", b"/e/g": "file 0"}),
        ([symlink(b"l", b"d"), entry(b"l/f"), symlink(b"l", b"e"), entry(b"l/g")],
         ROOT | {b"/l": "-> e", b"/d": "dir implicit", b"/d/f": "file 0", b"/e": "dir implicit", b"/e/g": "file 0"}),
        # hard links
        ([entry(b"f", b"x"), hard_link(b"g", b"f"), hard_link(b"h", b"/f")],
         ROOT | {b"/f": "file 1", b"/g": "file 1", b"/h": "file 1"}),
        ([entry(b"f", b"x"), hard_link(b"g", b"./f/"), hard_link(b"h", b"f/.")],
         ROOT | {b"/f": "file 1", b"/g": "file 1", b"/h": "file 1"}),
        ([symlink(b"s", b"t"), hard_link(b"h", b"s")], ROOT | {b"/s": "-> t", b"/h": "-> t"}),
        ([entry(b"d/f", b"x"), symlink(b"l", b"d"), hard_link(b"h", b"l/f")],
         ROOT | {b"/d": "dir implicit", b"/d/f": "file 1", b"/l": "-> d", b"/h": "file 1"}),
        ([hard_link(b"h", b"etc/passwd")], ROOT | {b"/h": "link etc/passwd"}),
        ([hard_link(b"h", b"/etc/./passwd")], ROOT | {b"/h": "link etc/passwd"}),
        ([symlink(b"l", b"usr/lib"), hard_link(b"h", b"l/f")], ROOT | {b"/l": "-> usr/lib", b"/h": "link usr/lib/f"}),
        ([entry(b"usr/g"), symlink(b"l", b"usr/lib"), hard_link(b"h", b"l/a/f")],
         ROOT | {b"/l": "-> usr/lib", b"/usr": "dir implicit", b"/usr/g": "file 0", b"/h": "link usr/lib/a/f"}),
        ([hard_link(b"h", b"x"), hard_link(b"i", b"h")], ROOT | {b"/h": "link x", b"/i": "link x"}),
        ([hard_link(b"f", b"f")], ROOT | {b"/f": "link f"}),
        # whiteouts
        ([entry(b".wh.f")], ROOT | {b"/f": "whiteout"}),
        ([entry(b"d/.wh.f")], ROOT | {b"/d": "dir implicit", b"/d/f": "whiteout"}),
        ([symlink(b"l", b"d"), entry(b"l/.wh.f")], ROOT | {b"/l": "-> d", b"/d": "dir implicit", b"/d/f": "whiteout"}),
        ([pax({b"path": b"d/.wh." + b"n" * 255}) + entry()],
         ROOT | {b"/d": "dir implicit", b"/d/" + b"n" * 255: "whiteout"}),
        ([entry(b".wh..wh..opq")], {b"/": "dir implicit opaque"}),
        ([entry(b".wh..wh..opq"), directory(b".")], {b"/": "dir opaque"}),
        ([directory(b"."), entry(b".wh..wh..opq")], {b"/": "dir opaque"}),
        ([entry(b"a/b/.wh..wh..opq"), entry(b"a/.wh..wh..opq"), entry(b"a/b/f")],
         ROOT | {b"/a": "dir implicit opaque", b"/a/b": "dir implicit opaque", b"/a/b/f": "file 0"}),
        ([entry(b".wh.f"), entry(b"f", b"x")], ROOT | {b"/f": "file 1"}),
        ([entry(b".wh.d"), directory(b"d"), entry(b"d/f")], ROOT | {b"/d": "dir opaque", b"/d/f": "file 0"}),
        ([entry(b".wh.d"), entry(b"d/f")], ROOT | {b"/d": "dir opaque", b"/d/f": "file 0"}),
        ([entry(b".wh.l"), symlink(b"l", b"t")], ROOT | {b"/l": "-> t"}),
        # a directory that is named to hide what is in it, and hidden itself
        ([entry(b".wh.b"), entry(b"b/.wh.c")], ROOT | {b"/b": "whiteout"}),
        ([entry(b"b/.wh.c"), entry(b".wh.b")], ROOT | {b"/b": "whiteout"}),
        ([entry(b"b/c/.wh.d"), entry(b"b/.wh.c"), entry(b".wh.b"), entry(b"b/.wh..wh..opq")],
         ROOT | {b"/b": "whiteout"}),
        ([entry(b"b/c/.wh.d"), entry(b"b/.wh.c")], ROOT | {b"/b": "dir implicit", b"/b/c": "whiteout"}),
        ([entry(b"b/.wh.c"), entry(b".wh.b"), directory(b"b/d")],
         ROOT | {b"/b": "dir opaque", b"/b/c": "whiteout", b"/b/d": "dir"}),
        # AUFS's bookkeeping is no part of a layer
        ([entry(b".wh..wh.aufs"), directory(b".wh..wh.plnk/"), entry(b".wh..wh.plnk/1.2"), directory(b".wh..wh.orph"),
          directory(b".wh..wh.plnk/d"), entry(b"f")], ROOT | {b"/f": "file 0"}),
    ],
)  # fmt: skip
def test_trees(entries: list[bytes], expected: dict[bytes, str]) -> None:
    assert describe(tree(*entries)) == expected


WHITEOUTS = [
    entry(b".wh.a"),
    directory(b"a"),
    entry(b"a/f", b"x"),
    entry(b"b/.wh..wh..opq"),
    entry(b"b/g"),
    entry(b".wh.c"),
]


def test_whiteouts_mean_the_same_wherever_they_stand() -> None:
    expected = describe(tree(*WHITEOUTS))
    assert expected[b"/a"] == "dir opaque"
    assert expected[b"/b"] == "dir implicit opaque"
    for order in itertools.permutations(WHITEOUTS):
        assert describe(tree(*order)) == expected


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([entry(b"../f")], UnsafePath),
        ([entry(b"a/../f")], UnsafePath),
        ([entry(b"a/..")], UnsafePath),
        ([directory(b"..")], UnsafePath),
        ([pax({b"path": b"a\0b"}) + entry()], UnsafePath),
        ([pax({b"path": b"a\0b/c"}) + entry()], UnsafePath),
        ([entry(b"a/x"), pax({b"path": b"a/b\0"}) + entry()], UnsafePath),
        ([entry(b"a/x"), entry(b"a/..")], UnsafePath),
        ([entry(b".")], UnsafePath),  # the root is a file
        ([symlink(b"/", b"/etc")], UnsafePath),
        ([symlink(b"./", b"/etc")], UnsafePath),
        ([hard_link(b".", b"f")], UnsafePath),
        ([header(b"")], FormatError),
        ([entry(b"f"), entry(b"f/g")], FormatError),
        ([entry(b"f"), directory(b"f/g/h")], FormatError),
        ([symlink(b"l", b"f"), entry(b"f"), entry(b"l/g")], FormatError),
        ([symlink(b"a", b"b"), symlink(b"b", b"a"), entry(b"a/f")], UnsafePath),
        ([symlink(b"a", b"a"), hard_link(b"h", b"a/f")], UnsafePath),
        ([symlink(b"l", b"")], FormatError),
        ([pax({b"linkpath": b"t" * 4096}) + symlink(b"l", b"")], FormatError),
        ([pax({b"linkpath": b"t\0u"}) + symlink(b"l", b"")], FormatError),
        ([hard_link(b"h", b"../f")], UnsafePath),
        ([hard_link(b"h", b"a/../f")], UnsafePath),
        ([hard_link(b"h", b"/")], UnsafePath),
        ([hard_link(b"h", b"")], FormatError),
        ([directory(b"d"), hard_link(b"h", b"d")], FormatError),
        ([directory(b"d"), symlink(b"l", b"d"), hard_link(b"h", b"l/.")], None),  # a link to the symlink
        ([entry(b".wh.")], UnsafePath),
        ([entry(b"a/.wh..")], UnsafePath),
        ([entry(b".wh...")], UnsafePath),
        ([directory(b".wh.x")], UnsafePath),
        ([directory(b".wh..wh..opq")], UnsafePath),
        ([entry(b".wh.x/f")], UnsafePath),
        ([symlink(b"l", b".wh.x"), entry(b"l/f")], UnsafePath),
        ([pax({b"linkpath": b"n" * 256}) + symlink(b"l", b""), entry(b"l/f")],
         LimitExceeded),
        ([pax({b"path": b"n" * 256}) + entry()], LimitExceeded),
        ([entry(b"a/x"), pax({b"path": b"a/" + b"n" * 256}) + entry()], LimitExceeded),
        ([pax({b"path": b"n/" * 32769}) + entry()], LimitExceeded),
        ([pax({b"path": b".wh." + b"n" * 256}) + entry()], LimitExceeded),
        ([pax({b"path": b".wh." + b"n" * 255 + b"/f"}) + entry()], UnsafePath),
        ([header(b"c", b"3")], UnsafePath),  # overlayfs would take it for a whiteout
        ([header(b"d/c", b"3", major=0, minor=0, mode=0o666)], UnsafePath),
        ([pax({b"SCHILY.xattr.system.posix_acl_access": b"junk"}) + entry()], FormatError),
        ([pax({b"SCHILY.xattr.security.capability": b"junk"}) + directory(b"d")], FormatError),
    ],
)  # fmt: skip
def test_refused(entries: list[bytes], error: type[Exception] | None) -> None:
    if error is None:
        tree(*entries)
        return
    with pytest.raises(error):
        tree(*entries)


def get(root: Node, path: bytes) -> Node:
    for name in path.split(b"/"):
        assert root.children is not None
        root = root.children[name]
    return root


def test_attributes() -> None:
    root = tree(
        header(b"d", b"5", mode=0o1777, uid=1, gid=2, mtime=3),
        pax({b"mtime": b"-1.5", b"SCHILY.xattr.user.a": b"1"}) + header(b"f", size=3, mode=0o4755, uid=9) + pad(b"abc"),
        header(b"l", b"2", link=b"target", mode=0o600, mtime=7),
        header(b"c", b"3", major=4, minor=64),
        header(b"b", b"4", major=0, minor=0),
        header(b"p", b"6"),
    )
    d, f, l, c = (get(root, name) for name in (b"d", b"f", b"l", b"c"))  # noqa: E741
    assert (d.mode, d.uid, d.gid, d.mtime) == (stat.S_IFDIR | 0o1777, 1, 2, 3)
    assert (f.mode, f.uid, f.mtime, f.mtime_ns) == (stat.S_IFREG | 0o4755, 9, -2, 500_000_000)
    assert (f.size, f.device, f.offset, f.xattrs) == (3, "layer", 2048, {b"user.a": b"1"})
    assert (l.mode, l.size, l.mtime) == (stat.S_IFLNK | 0o777, 6, 7)
    assert (c.mode, c.rdev) == (stat.S_IFCHR | 0o644, os.makedev(4, 64))
    assert stat.S_ISBLK(get(root, b"b").mode)
    assert stat.S_ISFIFO(get(root, b"p").mode)


@pytest.mark.parametrize(("major", "minor"), [(1, 3), (4095, 255), (4095, 2**20 - 1), (0, 256)])
def test_device_numbers_are_those_of_the_c_library(major: int, minor: int) -> None:
    root = tree(header(b"b", b"4", major=major, minor=minor))
    assert get(root, b"b").rdev == os.makedev(major, minor)


def test_hard_links_are_one_node() -> None:
    root = tree(entry(b"f", b"x"), hard_link(b"g", b"f"), entry(b"f", b"new"))
    assert get(root, b"g").size == 1  # the link keeps what it was made of
    assert get(root, b"f").size == 3
    root = tree(entry(b"f", b"x"), hard_link(b"g", b"f"), hard_link(b"h", b"g"))
    assert get(root, b"f") is get(root, b"g") is get(root, b"h")


def test_the_last_entry_of_a_file_says_what_it_is() -> None:
    capability = b"\1\0\0\2" + bytes(16)
    first = pax({b"SCHILY.xattr.user.a": b"1", b"SCHILY.xattr.security.capability": capability})
    root = tree(
        first + header(b"f", size=1, mode=0o4755, uid=1, gid=1, mtime=1) + pad(b"x"),
        pax({b"SCHILY.xattr.user.b": b"2", b"mtime": b"2.5"}) + header(b"g", b"1", link=b"f", mode=0o600, uid=2, gid=3),
        first + header(b"same", mode=0o755, uid=1, gid=1, mtime=1),
        header(b"other", b"1", link=b"same", mode=0o755, uid=1, gid=1, mtime=1),
        header(b"l", b"2", link=b"f", mode=0o777, uid=1, gid=1),
        pax({b"SCHILY.xattr.user.a": b"1"}) + header(b"m", b"1", link=b"l", mode=0o600, uid=2, gid=3),
    )
    f, same, link = (get(root, name) for name in (b"f", b"same", b"l"))
    assert (f.mode, f.uid, f.gid, f.mtime, f.mtime_ns) == (stat.S_IFREG | 0o600, 2, 3, 2, 500_000_000)
    assert (f.size, f.xattrs) == (1, {b"user.a": b"1", b"user.b": b"2"})
    assert same.xattrs == {b"user.a": b"1", b"security.capability": capability}
    assert (link.mode, link.uid, link.gid, link.xattrs) == (stat.S_IFLNK | 0o777, 2, 3, None)


PRIVATE = [
    b"trusted.overlay.opaque",
    b"trusted.overlay.redirect",
    b"user.overlay.whiteout",
    b"user.fuseoverlayfs.opaque",
    b"user.containers.override_stat",
    b"trusted.layerfs.implicit",
    b"trusted.layerfs.link",
]


def escaped(name: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in name)


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("kind", [b"0", b"2", b"4", b"5", b"6"])
def test_private_xattrs_are_dropped_in_every_spelling(name: bytes, kind: bytes) -> None:
    spellings = [
        {b"SCHILY.xattr." + name: b"y"},
        {b"LIBARCHIVE.xattr." + name: b"eQ"},
        {b"LIBARCHIVE.xattr." + escaped(name): b"eQ=="},
        {b"LIBARCHIVE.xattr." + name.replace(b".", b"%2e"): b"eQ"},
    ]
    for records in spellings:
        records[b"SCHILY.xattr.trusted.kept"] = b"1"
        node = get(tree(pax(records) + header(b"f", kind, link=b"t")), b"f")
        assert node.xattrs == {b"trusted.kept": b"1"}
        assert not node.is_opaque


def test_a_root_with_private_xattrs_is_not_opaque() -> None:
    root = tree(pax({b"SCHILY.xattr.trusted.overlay.opaque": b"y"}) + directory(b"./"))
    assert (root.is_opaque, root.is_implicit, root.xattrs) == (False, False, None)


def test_marks_do_not_leak_between_directories() -> None:
    root = tree(entry(b"a/f"), entry(b"b/.wh..wh..opq"), entry(b"c/.wh.x"))
    assert get(root, b"a").xattrs == {IMPLICIT_XATTR: b"y"}
    assert get(root, b"b").xattrs == {IMPLICIT_XATTR: b"y", OPAQUE_XATTR: b"y"}


def member(name: bytes, kind: bytes = b"0", link: bytes = b"") -> Member:
    return Member(name, kind, 0o644, 0, 0, 0, 0, 0, link, 0, 0, None, 0, 512, 0, None)


def test_deep_trees_need_no_recursion() -> None:
    layers = LayerTree("layer")
    depth = 20_000
    layers.add(member(b"/".join([b"d"] * depth) + b"/f"))
    layers.add(member(b"/".join([b"d"] * 2000), b"5"))
    node, seen = layers.finish(), 0
    while node.children:
        node = next(iter(node.children.values()))
        seen += 1
    assert seen == depth + 1


def test_implicit_directories_are_limited() -> None:
    layers = LayerTree("layer")
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match=str(MAX_IMPLICIT)):
            for number in range(1000):
                layers.add(member(b"%d" % number + b"/d" * 30_000 + b"/f"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 250 << 20


def test_remembered_parents_cost_little_memory() -> None:
    layers = LayerTree("layer")
    layers.add(member(b"l", b"2", link=b"."))
    for number in range(300):
        layers.add(member(b"./" * 30_000 + b"l/" * (number % 30) + b"%d/f" % number))
    assert sum(map(len, layers._parents)) < 1 << 20
    for number in range(40_000):
        layers.add(member(b"%d/f" % number))
    assert len(layers._parents) <= 1 << 14


def test_symlinks_that_multiply_come_to_an_end() -> None:
    layers = LayerTree("layer")
    layers.add(member(b"l0", b"2", link=b"."))
    for number in range(1, 60):
        layers.add(member(b"l%d" % number, b"2", link=b"l%d/l%d" % (number - 1, number - 1)))
    begin = time.process_time()
    with pytest.raises(UnsafePath, match="40 symlinks"):
        layers.add(member(b"l59/f"))
    assert time.process_time() - begin < 10  # without the limit: 2**59 steps


def with_xattrs(name: bytes, xattrs: dict[bytes, bytes]) -> Member:
    made = member(name)
    made.xattrs = xattrs
    return made


def test_text_is_limited() -> None:
    """An archive of a megabyte can hold gigabytes of xattrs that are all different."""
    value = bytes(60_000)
    many = LayerTree("layer")
    with pytest.raises(LimitExceeded, match="32 MiB"):
        for number in range(10_000):
            many.add(with_xattrs(b"f%d" % number, {b"user.a": value + b"%d" % number}))
    assert MAX_TEXT - 100_000 < many.entries * len(value) < MAX_TEXT + 100_000
    with pytest.raises(LimitExceeded):
        for number in range(10_000):
            many.add(member(b"s%d" % number, b"2", b"x" * 4_000))
    links = LayerTree("layer")
    with pytest.raises(LimitExceeded):
        for number in range(10_000):
            links.add(member(b"h%d" % number, b"1", b"y/" * 16_000 + b"%d" % number))


def test_equal_xattrs_count_once() -> None:
    same = LayerTree("layer")
    for number in range(10_000):
        same.add(with_xattrs(b"f%d" % number, {b"user.a": b"v" * 60_000}))
    values = {id(node.xattrs[b"user.a"]) for node in (same.finish().children or {}).values() if node.xattrs}
    assert len(values) == 1
    assert same.text < 100_000
