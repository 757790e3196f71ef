"""What a comparison does not need it does not touch: shown by taking it away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.store.image import find_image
from layerfs.store.snapshot import create_snapshot
from tests.image_builder import TestImage, docker_old, layer, noise, outer, pipe

BASE = layer({"etc/": b"", "etc/one": b"one", "lib/": b"", "lib/large": noise(50_000, 1), "lib/gone": b"x"})
OLD = TestImage([BASE, layer({"etc/old": b"old"})], ["old:1"])
NEW = TestImage([BASE, layer({"etc/new": b"new", "lib/.wh.gone": b""}), layer({"etc/one": b"other"})], ["new:1"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", sync=False) as opened:
        opened.load(pipe(outer(docker_old(OLD, NEW))))
        yield opened


def _layer(store: Store, tar: str) -> Path:
    return Path(store.info().root) / "layers" / tar.replace(":", "/")


def test_images_are_compared_without_the_layers_that_they_share(store: Store) -> None:
    expected = [(step.kind, step.path) for step in store.steps("old:1", "new:1")]
    assert expected == [
        ("C", b"/etc"), ("A", b"/etc/new"), ("D", b"/etc/old"), ("C", b"/etc/one"), ("C", b"/lib"),
        ("D", b"/lib/gone"),
    ]  # fmt: skip
    shutil.rmtree(_layer(store, OLD.diff_ids[0]))
    assert [(step.kind, step.path) for step in store.steps("old:1", "new:1")] == expected


def test_a_container_is_compared_without_any_layer(store: Store) -> None:
    snapshot = create_snapshot(store._handle, find_image(store._handle, "new:1"), "box")
    upper = Path(store._handle.layout.snapshot(snapshot.id)) / "upper"
    (upper / "etc").mkdir(mode=0o755)
    (upper / "etc/fresh").write_text("")
    for diff_id in NEW.diff_ids:
        shutil.rmtree(_layer(store, diff_id))
    assert ("A", b"/etc/fresh") in [(change.kind, change.path) for change in store.diff("box")]


def test_the_cost_of_a_comparison_is_that_of_the_difference(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a base a hundred times as large, the same number of inodes is looked at."""
    from layerfs.formats.erofs.reader import Tree

    counts = []
    inode = Tree.inode
    for number in (1, 100):
        base = layer({f"d{folder}/f{file}": b"x" for folder in range(number) for file in range(20)})
        one = TestImage([base, layer({"top/a": b"a"})], [f"one{number}:1"])
        two = TestImage([base, layer({"top/b": b"b"})], [f"two{number}:1"])
        store.load(pipe(outer(docker_old(one, two))))
        looked = 0

        def count(self: Tree, nid: int) -> object:
            nonlocal looked
            looked += 1
            return inode(self, nid)

        with monkeypatch.context() as patch:
            patch.setattr(Tree, "inode", count)
            assert len(list(store.steps(f"one{number}:1", f"two{number}:1"))) == 3
        counts.append(looked)
    assert counts[0] == counts[1] < 60
