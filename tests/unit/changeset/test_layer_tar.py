"""A tree is exported with every name; a layer has none that means a removal."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from layerfs.changeset.layer_tar import write_layer
from layerfs.changeset.upper import walk_upper
from layerfs.errors import UnsafePath


def test_only_a_layer_refuses_the_names_of_whiteouts(tmp_path: Path) -> None:
    (tmp_path / ".wh.kept").write_text("x")
    with pytest.raises(UnsafePath, match="cannot be in a layer"):
        list(write_layer(walk_upper(str(tmp_path), None, whole=True)))
    raw = b"".join(write_layer(walk_upper(str(tmp_path), None, whole=True), plain=True))
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert ".wh.kept" in tar.getnames()
