"""Images that other tools wrote, mounted by layerfs, hold exactly what those tools unpack themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.corpus import CorpusImage
from layerfs.api import Image, Store
from tests.integration.tree_compare import Entry, describe, differences, implicit_directories

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", runroot=tmp_path / "run") as opened:
        yield opened


def _load(store: Store, source: Path) -> Image:
    (loaded,) = store.load(source)
    return loaded


def _mounted(store: Store, image: Image, target: Path, *, read_only: bool) -> dict[bytes, Entry]:
    target.mkdir()
    mount = store.mount(image, target, read_only=read_only)
    try:
        return describe(target)
    finally:
        store.umount(mount.target)


@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "writable"])
def test_mount_equals_umoci_unpack(
    store: Store, real_image: CorpusImage, umoci_tree: Path, tmp_path: Path, read_only: bool
) -> None:
    loaded = _load(store, real_image.oci_archive)
    mounted = _mounted(store, loaded, tmp_path / "mnt", read_only=read_only)
    assert differences(describe(umoci_tree), mounted) == []


def test_mount_equals_podman_image_mount(
    store: Store, real_image: CorpusImage, podman_tree: Path, tmp_path: Path
) -> None:
    loaded = _load(store, real_image.docker_archive)
    mounted = _mounted(store, loaded, tmp_path / "mnt", read_only=True)
    theirs = describe(podman_tree)
    # podman makes such directories anew when it unpacks a layer, with the time of day; and its own root has mode 0555.
    # We take what the layer below says, as umoci does.
    for path in implicit_directories(real_image.layers()):
        theirs[path] = replace(theirs[path], mtime_ns=mounted[path].mtime_ns)
    theirs[b"."] = replace(theirs[b"."], mode=mounted[b"."].mode)
    assert differences(theirs, mounted) == []


def test_all_forms_of_an_image_are_one(store: Store, real_image: CorpusImage) -> None:
    forms = [_load(store, form) for form in (real_image.oci, real_image.oci_archive, real_image.docker_archive)]
    assert len({form.chain_id for form in forms}) == 1
    assert len({form.id for form in forms}) == 1, "the config is the same bytes in every form"
    assert [layer.diff_id for layer in store.layers(forms[0])] == [layer.diff_id for layer in store.layers(forms[2])]


def test_library_tree_names_what_the_mount_shows(store: Store, real_image: CorpusImage, tmp_path: Path) -> None:
    loaded = _load(store, real_image.oci_archive)
    mounted = _mounted(store, loaded, tmp_path / "mnt", read_only=True)
    walked = {path.lstrip(b"/") for path, _, _ in store.tree(loaded).walk()}
    assert walked | {b"."} == mounted.keys()
