"""Layers on layers: what each hides, replaces and links to."""

from __future__ import annotations

import stat

import pytest

from layerfs.errors import FormatError
from layerfs.formats.merge import apply_layer, empty_tree, walk
from layerfs.formats.tree import Node
from tests.unit.formats.raw_tar import END, entry, header, layer
from tests.unit.formats.test_tree import describe, directory, get, hard_link, symlink

Layers = list[list[bytes]]


def merge(*layers: list[bytes]) -> Node:
    merged = empty_tree()
    for entries in layers:
        above = layer(b"".join(entries) + END)
        before = describe(above)
        apply_layer(merged, above)
        assert describe(above) == before
    return merged


BASE = [directory(b"etc"), entry(b"etc/passwd", b"12"), entry(b"etc/group", b"123"), entry(b"f", b"1")]
USR = [directory(b"usr"), directory(b"usr/lib"), entry(b"usr/lib/a", b"1"), symlink(b"lib", b"usr/lib")]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], {}),
        ([[]], {}),
        ([BASE], {b"/etc": "dir", b"/etc/passwd": "file 2", b"/etc/group": "file 3", b"/f": "file 1"}),
        # replaced
        ([BASE, [entry(b"f", b"new")]],
         {b"/etc": "dir", b"/etc/passwd": "file 2", b"/etc/group": "file 3", b"/f": "file 3"}),
        ([BASE, [entry(b"etc", b"now")]], {b"/etc": "file 3", b"/f": "file 1"}),
        ([[entry(b"etc")], [entry(b"etc/x")]], {b"/etc": "dir", b"/etc/x": "file 0"}),
        ([[entry(b"d")], [directory(b"d")]], {b"/d": "dir"}),
        ([BASE, [entry(b"etc"), directory(b"etc")]], {b"/etc": "dir", b"/f": "file 1"}),
        ([USR, [directory(b"lib")]], {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/a": "file 1", b"/lib": "dir"}),
        # hidden
        ([BASE, [entry(b".wh.f"), entry(b"etc/.wh.group")]], {b"/etc": "dir", b"/etc/passwd": "file 2"}),
        ([BASE, [entry(b".wh.etc")]], {b"/f": "file 1"}),
        ([BASE, [entry(b".wh.nothing"), entry(b".wh..wh.plnk")]],
         {b"/etc": "dir", b"/etc/passwd": "file 2", b"/etc/group": "file 3", b"/f": "file 1"}),
        ([BASE, [entry(b"etc/.wh..wh..opq")]], {b"/etc": "dir", b"/f": "file 1"}),
        ([BASE, [entry(b"etc/new"), entry(b"etc/.wh..wh..opq")]],
         {b"/etc": "dir", b"/etc/new": "file 0", b"/f": "file 1"}),
        ([BASE, [entry(b".wh..wh..opq")]], {}),
        ([BASE, [entry(b"etc/x"), entry(b".wh..wh..opq")]], {b"/etc": "dir", b"/etc/x": "file 0"}),
        ([BASE, [directory(b"etc"), entry(b".wh.etc"), entry(b"etc/x")]],
         {b"/etc": "dir", b"/etc/x": "file 0", b"/f": "file 1"}),
        ([BASE, [entry(b".wh.f"), entry(b"f", b"new")]],
         {b"/etc": "dir", b"/etc/passwd": "file 2", b"/etc/group": "file 3", b"/f": "file 3"}),
        ([[entry(b"a/b/c/f")], [entry(b"a/.wh..wh..opq"), entry(b"a/b/c/.wh..wh..opq"), entry(b"a/b/c/g")]],
         {b"/a": "dir", b"/a/b": "dir", b"/a/b/c": "dir", b"/a/b/c/g": "file 0"}),
        ([[entry(b"a/f")], [entry(b".wh.a")], [entry(b"a/g")]], {b"/a": "dir", b"/a/g": "file 0"}),
        ([[], [entry(b"d/.wh.x")]], {b"/d": "dir"}),
        ([BASE, [entry(b"etc/.wh.passwd")], [entry(b"etc/passwd", b"back")]],
         {b"/etc": "dir", b"/etc/passwd": "file 4", b"/etc/group": "file 3", b"/f": "file 1"}),
        # through symlinks of lower layers
        ([USR, [entry(b"lib/b", b"12")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/a": "file 1", b"/usr/lib/b": "file 2", b"/lib": "-> usr/lib"}),
        ([USR, [entry(b"lib/.wh.a")]], {b"/usr": "dir", b"/usr/lib": "dir", b"/lib": "-> usr/lib"}),
        ([USR, [entry(b"lib/.wh..wh..opq"), entry(b"usr/lib/b")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/b": "file 0", b"/lib": "-> usr/lib"}),
        ([USR, [entry(b"lib/b"), entry(b"usr/lib/.wh..wh..opq")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/b": "file 0", b"/lib": "-> usr/lib"}),
        ([USR, [entry(b"lib/a", b"new"), entry(b"usr/lib/.wh.a")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/a": "file 3", b"/lib": "-> usr/lib"}),
        ([[symlink(b"up", b"../../.."), symlink(b"abs", b"/d")], [entry(b"up/f"), entry(b"abs/g")]],
         {b"/up": "-> ../../..", b"/f": "file 0", b"/abs": "dir", b"/abs/g": "file 0"}),
        ([[symlink(b"l", b"l")], [entry(b"l/f")]], {b"/l": "dir", b"/l/f": "file 0"}),
        ([[symlink(b"l", b"f"), entry(b"f")], [entry(b"l/f")]], {b"/l": "dir", b"/l/f": "file 0", b"/f": "file 0"}),
        ([USR, [entry(b".wh.lib"), entry(b"lib/b")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/a": "file 1", b"/lib": "dir", b"/lib/b": "file 0"}),
        # hard links into lower layers
        ([BASE, [hard_link(b"h", b"etc/passwd")]],
         {b"/etc": "dir", b"/etc/passwd": "file 2", b"/etc/group": "file 3", b"/f": "file 1", b"/h": "file 2"}),
        ([BASE, [hard_link(b"h", b"f"), entry(b".wh.f"), entry(b"etc/.wh..wh..opq")]],
         {b"/etc": "dir", b"/h": "file 1"}),
        ([USR, [hard_link(b"h", b"lib/a")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/a": "file 1", b"/lib": "-> usr/lib", b"/h": "file 1"}),
        ([[entry(b"usr/lib/a", b"1")], [symlink(b"lib", b"usr/lib"), hard_link(b"h", b"lib/a")]],
         {b"/usr": "dir", b"/usr/lib": "dir", b"/usr/lib/a": "file 1", b"/lib": "-> usr/lib", b"/h": "file 1"}),
        ([[symlink(b"s", b"t")], [hard_link(b"h", b"s")]], {b"/s": "-> t", b"/h": "-> t"}),
        ([BASE, [hard_link(b"f", b"f")]],
         {b"/etc": "dir", b"/etc/passwd": "file 2", b"/etc/group": "file 3", b"/f": "file 1"}),
    ],
)  # fmt: skip
def test_merged(layers: Layers, expected: dict[bytes, str]) -> None:
    assert describe(merge(*layers)) == {b"/": "dir", **expected}


@pytest.mark.parametrize(
    "link",
    [
        hard_link(b"h", b"nothing"),
        hard_link(b"h", b"etc"),  # a directory
        hard_link(b"h", b"f/x"),
        hard_link(b"h", b"no/such/file"),
        hard_link(b"h", b"h"),
    ],
)
def test_links_to_nothing_are_refused_and_change_nothing(link: bytes) -> None:
    merged = merge(BASE)
    before = describe(merged)
    with pytest.raises(FormatError, match="hard link 'h'"):
        apply_layer(merged, layer(link + entry(b".wh.f") + END))
    assert describe(merged) == before


def test_attributes_come_from_the_topmost_layer_that_has_an_entry() -> None:
    merged = merge(
        [header(b"d", b"5", mode=0o700, uid=1), header(b"./", b"5", mode=0o711)],
        [entry(b"d/f")],
        [entry(b"d/.wh.f")],
    )
    assert (get(merged, b"d").mode, get(merged, b"d").uid) == (stat.S_IFDIR | 0o700, 1)
    assert merged.mode == stat.S_IFDIR | 0o711
    apply_layer(merged, layer(header(b"d", b"5", mode=0o755, uid=2) + END))
    assert (get(merged, b"d").mode, get(merged, b"d").uid) == (stat.S_IFDIR | 0o755, 2)


def test_a_directory_that_was_hidden_loses_its_attributes() -> None:
    merged = merge([header(b"d", b"5", mode=0o700, uid=1)], [entry(b".wh.d"), entry(b"d/f")])
    assert (get(merged, b"d").mode, get(merged, b"d").uid) == (stat.S_IFDIR | 0o755, 0)


def test_links_into_a_lower_layer_are_one_inode() -> None:
    merged = merge(BASE, [hard_link(b"h", b"f"), hard_link(b"i", b"h")], [hard_link(b"j", b"i")])
    assert get(merged, b"f") is get(merged, b"h") is get(merged, b"i") is get(merged, b"j")


def test_no_mark_survives() -> None:
    merged = merge(BASE, [entry(b"etc/.wh..wh..opq"), entry(b".wh.f"), hard_link(b"h", b"f"), entry(b"x/y/z")])
    for node in walk(merged):
        assert not node.xattrs
        assert not node.is_whiteout


def test_layers_are_shared_but_not_changed() -> None:
    base = layer(b"".join(BASE) + END)
    one, two = empty_tree(), empty_tree()
    for merged in (one, two):
        apply_layer(merged, base)
    apply_layer(one, layer(entry(b".wh.f") + entry(b"etc/.wh..wh..opq") + END))
    assert b"/etc/passwd" in describe(two)
    assert b"/etc/passwd" in describe(base)


def test_deep_trees_need_no_recursion() -> None:
    path = b"d/" * 5000
    from layerfs.formats.tree import LayerTree
    from tests.unit.formats.test_tree import member

    merged = empty_tree()
    for name in (b"f", b".wh.f", b"g", b".wh..wh..opq"):
        tree = LayerTree("layer")
        tree.add(member(path + name))
        apply_layer(merged, tree.finish())
    assert sum(1 for _ in walk(merged)) == 5001
