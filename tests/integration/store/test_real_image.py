"""A real image, loaded from every form that other tools write."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from layerfs.api import Store
from tests.image_builder import oci, write_layout
from tests.integration.store.test_mounted import BORROWER, DONOR
from tests.store_audit import assert_whole, contents, tree_files

pytestmark = pytest.mark.needs_root

_REAL = Path("~/.cache/layerfs/corpus/demo").expanduser()


@pytest.mark.slow
def test_a_real_image_in_every_form(tmp_path: Path) -> None:
    if not (_REAL / "docker.tar").exists():
        pytest.skip("no image of Debian packages here; make demo makes one")
    sources: list[Path] = [_REAL / "oci", _REAL / "oci.tar", _REAL / "docker.tar"]
    trees = []
    for number, source in enumerate(sources):
        root = tmp_path / f"store{number}"
        with Store.open(root, sync=False) as store:
            if number:
                with open(source, "rb") as file:
                    (image,) = store.load(file)
            else:
                (image,) = store.load(source)
            assert_whole(store)
            for row in store.layers(image):
                hasher = hashlib.new(row.diff_id.algorithm)
                for piece in store.read_layer(row.diff_id):
                    hasher.update(piece)
                assert hasher.hexdigest() == row.diff_id.hex
            # Which layer holds what several have depends on the archive's order, so only names are compared.
            assert contents(store, image)
            trees.append(set(tree_files(root)))
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            with Store.open(tmp_path / "again", sync=False) as again:
                again.load(source)
            assert set(tree_files(tmp_path / "again")) == trees[-1]
        shutil.rmtree(root)
    assert trees[0] == trees[1] == trees[2]


def test_a_layout_that_is_loaded_twice_is_the_same(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", oci(BORROWER, DONOR))
    found = []
    for number in range(2):
        with Store.open(tmp_path / f"store{number}", sync=bool(number)) as store:
            store.load(layout)
        found.append(tree_files(tmp_path / f"store{number}"))
    assert found[0] == found[1]
