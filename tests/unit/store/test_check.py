"""Checking a store: what counts as damage, and what does not."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from layerfs.api import Store
from tests.image_builder import TestImage, layer, noise, oci, write_layout

IMAGE = TestImage([layer({"a": noise(50_000)})], ["a:1"], codec="gzip")


class _Deadline(TimeoutError):
    """An exception that is an OSError, as those of deadlines are."""


@pytest.mark.parametrize("repair", [False, True])
def test_what_a_check_raises_is_no_damage(store: Store, tmp_path: Path, repair: bool) -> None:
    (image,) = store.load(write_layout(tmp_path / "layout", oci(IMAGE)), keep_blobs=True)
    blob = store._handle.layout.blob(store.manifest(image).layers[0].digest)
    for number in (1, 2):  # while the layer is read, and while its blob is
        check = Mock(side_effect=[None] * (number - 1) + [_Deadline])
        with pytest.raises(_Deadline):
            list(store.check(repair=repair, check=check))
        assert os.path.exists(blob)
        assert list(store.check()) == []


def test_neither_is_an_error_of_this_process(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load(write_layout(tmp_path / "layout", oci(IMAGE)), keep_blobs=True)
    root = store.info().root
    opens = os.open, open
    left = 0

    def counted(which: int, path: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        inside = str(path).startswith(root) and "/locks/" not in str(path)
        left -= inside
        if inside and not left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return opens[which](path, *arguments, **options)

    failed = 0
    for number in range(1, 30):
        left = number
        with monkeypatch.context() as short:
            short.setattr(os, "open", partial(counted, 0))
            short.setattr("builtins.open", partial(counted, 1))
            try:
                assert list(store.check(repair=True)) == [], number
            except OSError as error:
                failed += error.errno == errno.EMFILE
    assert failed > 5
    assert list(store.check()) == []


def test_a_tree_that_was_never_needed_is_made_to_be_looked_at_in_a_frozen_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = store.load(write_layout(tmp_path / "layout", oci(IMAGE)))
    path = Path(store._handle.layout.merged_tree(store._record(image).chain_id))
    path.unlink()
    monkeypatch.setattr(store._handle.database, "frozen", True)
    with store.tree(image) as tree:
        assert tree.read(tree.resolve(b"/a")) == noise(50_000)
    assert not path.exists()
