"""AsyncStore has what Store has, under the same names, with the same arguments."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from layerfs.api import Store
from layerfs.api.async_store import AsyncStore
from layerfs.errors import NotFound
from layerfs.store import check
from tests.image_builder import TestImage, layer, noise, oci, write_layout
from tests.store_audit import assert_clean


def public(cls: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(cls, callable)
        if not name.startswith("_")
    }


def test_same_names_and_arguments() -> None:
    ours, theirs = public(AsyncStore), public(Store)
    assert set(ours) == set(theirs)
    for name, signature in theirs.items():
        method = getattr(AsyncStore, name)
        assert method.__doc__
        if hasattr(method, "__wrapped__"):
            assert method.__wrapped__ is getattr(Store, name)  # whose signature it has then, as inspect sees it
            continue
        assert str(ours[name].replace(return_annotation=None)) == str(signature.replace(return_annotation=None)), name


def test_everything_is_awaited_or_iterated() -> None:
    for name in public(AsyncStore):
        code = getattr(AsyncStore, name)
        yields = inspect.isgeneratorfunction(getattr(Store, name))
        assert (inspect.isasyncgenfunction if yields else inspect.iscoroutinefunction)(code), name


def test_use(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "oci", oci(TestImage([layer({"f": b"data"})], ["app:1"])))

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            image = (await store.load(layout))[0]
            assert await store.resolve("app:1") == image
            pieces = [piece async for piece in store.read_layer((await store.layers(image))[0].diff_id)]
            assert b"data" in b"".join(pieces)
            assert [problem async for problem in store.check()] == []
            with pytest.raises(NotFound):
                await store.resolve("nothing")

    trio.run(run)


def test_a_load_can_be_cancelled(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "oci", oci(TestImage([layer({"f": b"data"})], ["app:1"])))

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.load(layout)
            assert scope.cancelled_caught
            assert await store.images() == []

    trio.run(run)


def test_a_load_can_be_cancelled_in_its_midst(tmp_path: Path) -> None:
    image = TestImage([layer({"f": noise(5_000_000)}), layer({"g": b"g"})], ["a:1"])
    layout, begun = write_layout(tmp_path / "oci", oci(image)), threading.Event()

    class Told:
        def update(self, _key: str, state: str, _done: int, _total: int | None) -> None:
            if state == "Loading":
                begun.set()
                time.sleep(0.05)

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(store.load, layout, progress=Told()))
                    await trio.to_thread.run_sync(begun.wait)
                    scope.cancel()
            assert scope.cancelled_caught
        with Store.open(tmp_path / "store", sync=False) as opened:
            assert opened.images() == []
            assert_clean(opened)

    trio.run(run)


def test_what_yields_is_cancelled_between_two_polls_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polled = 0

    def slow(_store: object, *, check: Callable[[], None], **_options: object) -> Iterator[object]:
        nonlocal polled
        for _round in range(1000):
            time.sleep(0.01)
            polled += 1
            check()
        yield from ()

    monkeypatch.setattr(check, "check_store", slow)

    async def run() -> None:
        async with await AsyncStore.open(tmp_path / "store", sync=False) as store:
            with trio.move_on_after(0.1) as scope:
                async for _ in store.check():
                    pass
            assert scope.cancelled_caught

    trio.run(run)
    assert 0 < polled < 500
