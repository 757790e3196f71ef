"""A store, and a registry with an image, for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.api import Store
from tests.faulty_registry import FaultyRegistry, serving
from tests.image_builder import TestImage, layer, noise
from tests.unit.registry.faults import IMAGE


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", sync=False) as opened:
        yield opened


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    made = FaultyRegistry()
    made.add(IMAGE)
    made.add(TestImage([layer({"other": noise(50_000, "other")})]), "other")
    with serving(made):
        yield made
