"""Where bytes are, against the same sums made the slow way."""

from __future__ import annotations

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.api import Store
from layerfs.formats.whiteout import is_whiteout_device
from layerfs.store.image import find_image, image_layers
from layerfs.store.layer import open_tree
from tests.image_builder import TestImage, docker_old, entry, layer, outer, pipe

_names = st.sampled_from(["a", "b", "c"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)


@st.composite
def layers(draw: st.DrawFn) -> bytes:
    """A layer with files, directories, whiteouts and opaque marks; no path is both a file and a directory."""
    members: dict[str, bytes] = {}
    for path in draw(st.lists(_paths, max_size=6)):
        kind = draw(st.integers(0, 4))
        parent, slash, leaf = path.rpartition("/")
        parents = {path[:at] for at, char in enumerate(path) if char == "/"}
        files = {name for name, raw in members.items() if raw[156:157] == b"0"}
        if parents & files or any(name.startswith(path + "/") for name in members):
            continue
        if kind == 0:
            members[path] = entry(path, kind=b"5")
        elif kind == 1 and parent:
            members[f"{parent}/.wh..wh..opq"] = entry(f"{parent}/.wh..wh..opq")
        elif kind == 2 and path not in members:
            members[f"{parent}{slash}.wh.{leaf}"] = entry(f"{parent}{slash}.wh.{leaf}")
        else:
            members[path] = entry(path, b"x" * draw(st.sampled_from([0, 1, 10, 300])))
    return layer(members.values())


@settings(max_examples=150)
@given(st.lists(layers(), min_size=1, max_size=4))
def test_sums_are_those_of_the_layers_and_of_the_image(tars: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open(folder, sync=False) as store:
        (image,) = store.load(pipe(outer(docker_old(TestImage(tars, ["x:1"], codec="none")))))
        report = store.analyze(image)
        record = find_image(store._handle, str(image.id))
        stored = 0
        for row, found in zip(report.layers, image_layers(store._handle, record), strict=True):
            tree = open_tree(store._handle.layout.layer_tree(found.diff_id))
            own, entries = 0, 0
            todo = [tree.root]
            while todo:
                for _, nid, kind in tree.readdir(todo.pop()):
                    inode = tree.inode(nid)
                    if kind == 2:
                        todo.append(nid)
                    elif not is_whiteout_device(inode.mode, inode.rdev):
                        own += inode.size
                        entries += 1
            assert row.bytes == own
            assert row.added + row.changed == entries
            stored += own
        with store.tree(image) as view:
            visible = sum(view.inode(nid).size for _, nid, kind in view.walk() if kind != 2)
        assert report.stored == stored
        assert report.visible == visible
        assert report.wasted == stored - visible == sum(row.wasted for row in report.layers)
        assert report.wasted == sum(row.hides_bytes for row in report.layers)
        assert report.wasted == sum(row.size for row in report.repeated)
        assert report.picture.size == visible
        assert 0 <= report.efficiency <= 1
        assert 0 <= report.user_wasted <= 1


def test_the_score_is_dives() -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open(folder, sync=False) as store:
        tars = [
            layer({"same": b"x" * 100, "grows": b"x" * 10, "goes": b"x" * 50}),
            layer({"grows": b"x" * 30, ".wh.goes": b""}),
        ]
        (image,) = store.load(pipe(outer(docker_old(TestImage(tars, ["x:1"], codec="none")))))
        report = store.analyze(image)
        assert report.efficiency == (100 + 10 + 0) / (100 + 10 + 50 + 30)
        assert report.wasted == 60
        assert [(row.added, row.changed, row.hidden) for row in report.layers] == [(3, 0, 0), (0, 1, 2)]
        assert [(row.path, row.layers) for row in report.repeated] == [(b"/goes", (0,)), (b"/grows", (0, 1))]
