"""A store whose database or directories contradict themselves: nothing goes that may be in use, and it is said."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import IntegrityError, LayerfsError, StoreError
from layerfs.store.image import list_images
from layerfs.store.snapshot import create_snapshot
from layerfs.values import Image
from tests.image_builder import TestImage, layer, noise, oci, write_layout
from tests.store_audit import assert_whole, contents

IMAGE = TestImage([layer({"a": noise(50_000)}), layer({"b": b"b"})], ["a:1"], codec="gzip")

#: First byte of a page that is a leaf of an index.
_INDEX_LEAF = 0x0A


@pytest.fixture
def image(store: Store, tmp_path: Path) -> Image:
    (image,) = store.load(write_layout(tmp_path / "layout", oci(IMAGE)), keep_blobs=True)
    return image


@pytest.fixture
def upper(store: Store, image: Image) -> Path:
    """The writable layer of a container ``box``, with something in it."""
    found = Path(store._handle.layout.upper(create_snapshot(store._handle, store._record(image), "box").id))
    (found / "written").write_text("mine")
    return found


def flip_in_index(root: Path, text: str) -> None:
    """Change one digit of a text where it stands in indexes, and leave the tables as they are. The store is closed."""
    path = root / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    wanted, found = text.encode(), 0
    for start in range(size, len(data), size):
        if data[start] == _INDEX_LEAF and (place := data.find(wanted, start, start + size)) >= 0:
            data[place + len(wanted) // 2] ^= 1
            found += 1
    assert found
    path.write_bytes(data)


@pytest.fixture(params=["container", "layer", "image"])
def contradicting(store: Store, image: Image, upper: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """The store, opened again with a damaged index."""
    layout = store._handle.layout
    text = {"container": upper.parent.name, "layer": IMAGE.diff_ids[0], "image": str(image.id)}[request.param]
    store.close()
    flip_in_index(Path(layout.root), text)
    with Store.open(layout.root, sync=False) as opened:
        yield opened


def test_nothing_goes_while_an_index_contradicts_its_table(contradicting: Store, upper: Path) -> None:
    root = Path(contradicting.info().root)
    before = sorted(path for path in root.rglob("*") if path.is_file() and "store.db" not in path.name)
    for change in (
        contradicting.gc,
        lambda: contradicting.remove_image(IMAGE.id),
        lambda: contradicting.load(write_layout(root.parent / "again", oci(IMAGE))),
        lambda: create_snapshot(contradicting._handle, list_images(contradicting._handle)[0], "other"),
    ):
        with pytest.raises(StoreError, match=r"missing from index|wrong # of entries") as caught:
            change()
        assert "check --repair" in (caught.value.hint or "")
    problems = [problem for problem in contradicting.check() if problem.name == "store.db"]
    assert problems
    assert not any(problem.repaired for problem in problems)
    assert sorted(path for path in root.rglob("*") if path.is_file() and "store.db" not in path.name) == before
    assert all(problem.repaired for problem in contradicting.check(repair=True))
    assert list(contradicting.check()) == []
    contradicting.gc()
    assert (upper / "written").read_text() == "mine"
    assert contents(contradicting, IMAGE.id)[b"/b"] == b"b"
    assert_whole(contradicting)


def test_extents_are_looked_at_before_a_layer_goes(store: Store, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    database = store._handle.database
    monkeypatch.setattr(database, "refuse_contradictions", lambda *, borrowed=False: asked.append(borrowed))
    store.gc()
    assert True not in asked
    store.remove_image(image)
    assert True in asked


def test_a_table_that_is_damaged_is_not_called_mended(store: Store, image: Image) -> None:
    root = Path(store.info().root)
    with closing(sqlite3.connect(root / "store.db")) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'image_chain'")
    store.close()
    with Store.open(root, sync=False) as opened:
        found = list(opened.check(repair=True))
        assert found
        assert not any(problem.repaired for problem in found if problem.name == "store.db")
        assert os.path.exists(opened._handle.layout.layer_tar(opened.layers(str(image.id))[0].diff_id))


@pytest.mark.parametrize("value", ["'nonsense'", "CAST(x'ff' AS TEXT)", "'sha256:' || printf('%064d', 0) || '\u00e9'"])
def test_rows_that_hold_no_digest(store: Store, image: Image, value: str) -> None:
    with closing(sqlite3.connect(Path(store.info().root) / "store.db")) as connection, connection:
        connection.execute(f"UPDATE image SET manifest = {value}")
    with pytest.raises(LayerfsError, match="database") as caught:
        store.images()
    assert isinstance(caught.value, StoreError | IntegrityError)
    if value != "CAST(x'ff' AS TEXT)":  # which SQLite's module does not even hand out
        (problem,) = store.check()
        assert (problem.name, problem.repaired, problem.message[:7]) == ("store.db", False, "image: ")


def test_what_a_damaged_manifest_names_stays(store: Store, image: Image) -> None:
    layout = store._handle.layout
    kept = [layout.blob(blob.digest) for blob in store.manifest(image).layers]
    with open(layout.blob(image.manifest_digest), "ab") as file:
        file.write(b" ")
    store.gc()
    assert all(map(os.path.exists, kept))
    store.remove_image(image)
    assert not any(map(os.path.exists, kept))


def test_a_tree_that_is_missing_is_damage(store: Store, image: Image) -> None:
    """And not something that the user asked for and that is not there."""
    os.unlink(store._handle.layout.layer_tree(store.layers(image)[1].diff_id))
    for ask in (lambda: store.which(image, b"/b"), lambda: list(store.layer_steps(store.layers(image)[1].diff_id))):
        with pytest.raises(IntegrityError, match="tree of layer") as caught:
            ask()
        assert "check --repair" in (caught.value.hint or "")
    assert [problem.repaired for problem in store.check(repair=True)] == [True]
    store.which(image, b"/b")


@pytest.mark.needs_root
def test_containers_are_looked_at(store: Store, upper: Path) -> None:
    work = upper.parent / "work"
    work.rmdir()
    (problem,) = store.check()
    assert (problem.kind, problem.name, problem.repaired) == ("container", "box", False)
    assert not work.exists()
    with pytest.raises(IntegrityError, match=r"work is missing") as caught:
        store.mount(None, name="box")
    assert "check --repair" in (caught.value.hint or "")
    (problem,) = store.check(repair=True)
    assert problem.repaired
    assert work.is_dir()
    assert not list(store.check())
    shutil.rmtree(upper)
    (problem,) = store.check(repair=True)
    assert not problem.repaired
    assert "layerfs rm box" in (problem.hint or "")
    with pytest.raises(IntegrityError, match="writable layer"):
        list(store.diff("box"))
    store.remove_container("box")
    assert not list(store.check())
