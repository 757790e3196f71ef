"""Loads, removals, names, damage and collections in any order, against a model that is a dictionary."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from layerfs.api import Store
from layerfs.errors import IntegrityError, NotFound
from layerfs.formats.digest import Digest
from tests.image_builder import TestImage, docker_new, docker_old, layer, noise, oci, outer, pipe
from tests.store_audit import assert_clean, contents, disk

#: Few contents, so that layers meet in them; the empty and the small one are never shared.
_CONTENTS = [b"", b"small", *(noise(5000 + 3000 * number, number) for number in range(4))]
_NAMES = ["a", "b", "d/c", "d/e"]
_FORMS = {"old": docker_old, "new": docker_new, "oci": oci}
_TAGS = ["one:1", "two:1", "three:1"]

_files = st.dictionaries(
    st.sampled_from([*_NAMES, ".wh.a", "d/.wh.c", "d/.wh..wh..opq"]),
    st.integers(0, len(_CONTENTS) - 1),
    min_size=1,
    max_size=4,
)
_layers = st.lists(_files, min_size=1, max_size=3)


def _tar(files: dict[str, int]) -> bytes:
    return layer({name: b"" if ".wh." in name else _CONTENTS[data] for name, data in sorted(files.items())})


def _expected(layers: list[dict[str, int]]) -> dict[bytes, bytes]:
    """Return the files of an image by the rules of the specification, the slow way; directories are left out."""
    merged: dict[str, bytes] = {}
    for files in layers:
        for name in files:
            if name.endswith(".wh..wh..opq"):
                merged = {path: data for path, data in merged.items() if not path.startswith("d/")}
            elif ".wh." in name:
                merged.pop(name.replace(".wh.", ""), None)
        merged |= {name: _CONTENTS[data] for name, data in files.items() if ".wh." not in name}
    return {b"/" + name.encode(): data for name, data in merged.items()}


class StoreMachine(RuleBasedStateMachine):
    """The model: which image every name means, and what is in every image."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="layerfs-model-"))
        self.store = Store.open(self.folder / "store", sync=False)
        self.images: dict[str, list[dict[str, int]]] = {}
        self.names: dict[str, str] = {}
        self.archives: dict[str, TestImage] = {}

    @rule(layers=_layers, tag=st.sampled_from(_TAGS), form=st.sampled_from(sorted(_FORMS)), base=st.booleans())
    def load(self, layers: list[dict[str, int]], tag: str, form: str, base: bool) -> None:
        if base and self.images:
            layers = next(iter(self.images.values()))[:2] + layers
        image = TestImage([_tar(files) for files in layers], [tag])
        (loaded,) = self.store.load(pipe(outer(_FORMS[form](image))))
        assert str(loaded.id) == image.id
        self.images[image.id], self.archives[image.id], self.names[tag] = layers, image, image.id

    @rule(tag=st.sampled_from(_TAGS), other=st.sampled_from(_TAGS))
    def tag(self, tag: str, other: str) -> None:
        if tag in self.names:
            self.store.tag(tag, other)
            self.names[other] = self.names[tag]

    @rule(tag=st.sampled_from(_TAGS))
    def remove(self, tag: str) -> None:
        if tag not in self.names:
            with contextlib.suppress(NotFound):
                self.store.remove_image(tag)
                raise AssertionError(f"{tag} was removed, and the model does not know it")
            return
        self.store.remove_image(tag)
        image = self.names.pop(tag)
        if image not in self.names.values():
            del self.images[image]

    @rule(tag=st.sampled_from(_TAGS))
    def remove_by_id(self, tag: str) -> None:
        if tag in self.names:
            image = self.names[tag]
            self.store.remove_image(image, force=True)
            self.names = {name: other for name, other in self.names.items() if other != image}
            del self.images[image]

    @rule(number=st.integers(0, 10), tree=st.booleans())
    def damage_and_load_again(self, number: int, tree: bool) -> None:
        """Every image that has the layer, or a layer that borrows from it, is loaded again."""
        layers = sorted({diff_id for image in self.images for diff_id in self.archives[image].diff_ids})
        if not layers:
            return
        victim = Digest.parse(layers[number % len(layers)])
        layout = self.store._handle.layout
        path = layout.layer_tree(victim) if tree else layout.layer_tar(victim)
        os.truncate(path, number * 100)
        for image in self.images:
            self.store.load(pipe(outer(oci(self.archives[image].using(names=[])))))

    @rule(tag=st.sampled_from(_TAGS))
    def load_what_is_broken(self, tag: str) -> None:
        image = TestImage([_tar({"a": 3}), b"no tar" * 300], [tag])
        try:
            self.store.load(pipe(outer(docker_old(image.using(codec="none")))))
        except (IntegrityError, ValueError):
            return
        raise AssertionError("a broken image was loaded")

    @rule()
    def collect(self) -> None:
        self.store.gc()

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "store", sync=False)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {str(image.id) for image in self.store.images()} == set(self.images)
        for tag, image in self.names.items():
            assert str(self.store.resolve(tag).id) == image
        for image, layers in self.images.items():
            found = contents(self.store, image)
            assert {path: data for path, data in found.items() if data != b"type 40000"} == _expected(layers)
        assert_clean(self.store)
        if not self.images:
            assert disk(self.folder / "store" / "layers") < 20_000

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStore = StoreMachine.TestCase
