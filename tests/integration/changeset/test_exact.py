"""Changes are exact: what is compared, written as a layer and applied gives the very same tree, for random trees."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings

from layerfs.api import Image, Store
from tests.image_builder import TestImage, entry, layer, oci, outer
from tests.integration.changeset.random_trees import Tree, reshape, tar_of, trees
from tests.integration.tree_compare import describe, differences
from tests.store_audit import assert_clean

pytestmark = [pytest.mark.needs_root]

EXAMPLES = settings(max_examples=40)


@contextmanager
def _scratch() -> Iterator[tuple[Store, Path]]:
    """A store of one example."""
    with (
        tempfile.TemporaryDirectory(prefix="layerfs-exact-") as folder,
        Store.open(f"{folder}/store", runroot=f"{folder}/run", sync=False) as store,
    ):
        yield store, Path(folder)


def _image(store: Store, tree: Tree, name: str) -> Image:
    return store.import_tree([tar_of(tree)], name, force=True)


def _exported(store: Store, name: str | Image) -> bytes:
    return b"".join(store.export(name))


def _container(store: Store, image: Image, name: str) -> None:
    """Make a container without mounting it."""
    from layerfs.store.image import find_image
    from layerfs.store.snapshot import create_snapshot

    create_snapshot(store._handle, find_image(store._handle, str(image.id)), name)


@EXAMPLES
@given(trees())
def test_export_of_an_import_is_the_same_tree(tree: Tree) -> None:
    with _scratch() as (store, _):
        image = _image(store, tree, "a")
        exported = _exported(store, image)
        assert _exported(store, store.import_tree([exported], "b", force=True)) == exported


@EXAMPLES
@given(trees(), trees())
def test_the_difference_of_two_images_applied_to_one_gives_the_other(old: Tree, new: Tree) -> None:
    with _scratch() as (store, _):
        a, b = _image(store, old, "a"), _image(store, new, "b")
        layer = b"".join(store.layer_tar(a, b))
        _container(store, a, "box")
        store.apply("box", [layer])
        assert _exported(store, "box") == _exported(store, b)
        committed = store.commit("box", "c")
        assert _exported(store, committed) == _exported(store, b)
        # And back, where the images share a layer and only what the upper one touches is looked at.
        back = b"".join(store.layer_tar(committed, a))
        _container(store, committed, "other")
        store.apply("other", [back])
        assert _exported(store, "other") == _exported(store, a)
        assert not [step.path for step in store.steps(b, committed, exact=True)]
        assert_clean(store)


def test_links_to_several_files_of_the_image() -> None:
    with _scratch() as (store, _):
        names = "abcdefgh"
        base = layer({name: name.encode() * 3 for name in names})
        (image,) = store.load(io.BytesIO(outer(oci(TestImage([base], ["a:1"])))))
        _container(store, image, "box")
        store.apply("box", [layer([entry(f"x{name}", kind=b"1", link=name) for name in names])])
        committed = store.commit("box", "c")
        with store.tree(committed) as tree:
            for name in names:
                for path in (name, f"x{name}"):
                    assert tree.read(tree.resolve(path.encode())) == name.encode() * 3
                assert tree.resolve(name.encode()) == tree.resolve(f"x{name}".encode())


@EXAMPLES
@given(trees(), trees(), trees())
def test_squashed_layers_are_the_same_tree(one: Tree, two: Tree, three: Tree) -> None:
    with _scratch() as (store, _):
        image = _image(store, one, "a")
        for number, tree in enumerate((two, three)):
            _container(store, image, f"box{number}")
            store.apply(f"box{number}", [b"".join(store.layer_tar(image, _image(store, tree, f"t{number}")))])
            image = store.commit(f"box{number}", f"c{number}")
        assert store.resolve("c1").layers <= 3
        flat = store.squash(image, "flat")
        assert flat.layers == 1
        assert _exported(store, flat) == _exported(store, image)
        upper = store.squash(image, "upper", first=image.layers - 1)
        assert _exported(store, upper) == _exported(store, image)


def _committed_is_shown(backend: str, old: Tree, new: Tree) -> None:
    with _scratch() as (store, folder):
        image = _image(store, old, "a")
        expected = _exported(store, _image(store, new, "b"))
        for name in ("box", "committed"):
            (folder / name).mkdir()
        store.mount(image, folder / "box", name="box", backend=backend)
        try:
            reshape(folder / "box", old, new)
            committed = store.commit("box", "c")
            assert store.commit("box", "again").id == committed.id
            shown = describe(folder / "box")
        finally:
            store.umount("box")
        assert _exported(store, "box") == expected
        assert _exported(store, committed) == expected
        assert_clean(store)
        store.mount(committed, folder / "committed", read_only=True, backend=backend)
        try:
            assert differences(shown, describe(folder / "committed")) == []
        finally:
            store.umount(str(folder / "committed"))


@pytest.mark.needs_overlay
@EXAMPLES
@given(trees(), trees())
def test_what_the_kernel_shows_is_what_is_committed(old: Tree, new: Tree) -> None:
    _committed_is_shown("overlay", old, new)


@pytest.mark.needs_fuse
@settings(max_examples=12)
@given(trees(), trees())
def test_what_the_fuse_union_shows_is_what_is_committed(old: Tree, new: Tree) -> None:
    _committed_is_shown("fuse", old, new)
