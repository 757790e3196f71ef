"""The porcelain for trio programs: :class:`AsyncStore`, the same methods as :class:`layerfs.api.Store`, awaited.

    async with await AsyncStore.open("/var/lib/layerfs") as store:
        with trio.move_on_after(60):
            await store.pull("registry.example/app", access=Access(auth_files=("/etc/app/auth.json",)))
        async with aclosing(store.diff("box")) as changes:
            async for change in changes:
                print(change.kind, change.path)

Pulls and pushes are trio functions; everything else runs in a worker thread. When a call is cancelled whose method
takes ``check``, its thread ends at its next look at that, and leaves what an interrupted one leaves; others are waited
for.
Methods that yield become asynchronous iterators, which :func:`contextlib.aclosing` closes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import trio

from layerfs.api import Store
from layerfs.api.base import StrPath
from layerfs.api.callback import callbacks
from layerfs.api.concurrency import in_thread, pull_layers, push_layers
from layerfs.formats.media_type import Compression
from layerfs.formats.platform import Platform
from layerfs.formats.reference import DEFAULT_TAG, Reference
from layerfs.formats.transport import is_registry
from layerfs.registry.access import Access
from layerfs.registry.loader import Progress
from layerfs.registry.pull import LayerVanished, Pull
from layerfs.registry.push import Push
from layerfs.registry.remote import Registries
from layerfs.store.image import ImageRecord
from layerfs.values import Image, PushedImage

__all__ = ["AsyncStore"]

P = ParamSpec("P")
T = TypeVar("T")

#: Items of an iterator taken from its thread at a time, and seconds after which those that are there are handed on.
_BATCH, _PATIENCE = 64, 0.02


class _GivenUp(Exception):
    """Ends work whose task was cancelled, in whatever thread."""


def _awaited(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[AsyncStore, P], Awaitable[T]]:
    """Return a method of the sync store as one that is awaited."""
    polls = "check" in inspect.signature(method).parameters

    async def call(self: AsyncStore, /, *args: P.args, **options: P.kwargs) -> T:
        run: Callable[..., T] = functools.partial(method, self._store, *args, **options)
        if not polls:
            return await trio.to_thread.run_sync(run)
        return await _cancellable(lambda check: run(check=check), options.get("check"))

    functools.update_wrapper(call, method)
    return call


async def _cancellable(work: Callable[[Callable[[], None]], T], check: Any) -> T:
    """Run blocking work in a thread, with a check that ends it when the task is cancelled.

    Args:
        work: called with the check, which it may poll in any thread.
        check: the caller's own, or None.
    """
    cancelled = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            results.append(await trio.to_thread.run_sync(lambda: work(_or_cancelled(check, cancelled))))
        except (trio.Cancelled, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised again outside of the nursery, which would wrap it
            failures.append(error)
        nursery.cancel_scope.cancel()
    if failures:
        if isinstance(failures[0], _GivenUp):
            await trio.lowlevel.checkpoint()  # raises Cancelled
        raise failures[0]
    return results[0]


def _iterated(
    method: Callable[Concatenate[Store, P], Iterator[T]], *, batch: int = _BATCH
) -> Callable[Concatenate[AsyncStore, P], AsyncGenerator[T, None]]:
    """Return a method of the sync store that yields as an asynchronous iterator.

    Args:
        method: of the sync store.
        batch: items taken from its thread at a time, at most; 1 for those that are good until the next one is taken.
    """
    polls = "check" in inspect.signature(method).parameters

    async def call(self: AsyncStore, /, *args: P.args, **options: P.kwargs) -> AsyncGenerator[T, None]:
        keywords: dict[str, Any] = dict(options)
        if polls:
            keywords["check"] = _or_cancelled(keywords.get("check"))
        run: Callable[..., Iterator[T]] = functools.partial(method, self._store)
        items = run(*args, **keywords)

        def gather() -> tuple[list[T], Exception | None, bool]:
            found: list[T] = []
            until = time.monotonic() + _PATIENCE
            try:
                for item in items:
                    found.append(item)
                    if len(found) >= batch or time.monotonic() > until:
                        return found, None, False
                    trio.from_thread.check_cancelled()
            except Exception as error:  # noqa: BLE001 - raised again, behind what came before it
                return found, error, True
            return found, None, True

        try:
            ended = False
            while not ended:
                found, error, ended = await trio.to_thread.run_sync(gather)
                for item in found:
                    yield item
                if error is not None:
                    raise error
        finally:
            if isinstance(items, Generator):
                items.close()  # and what it has open, now and not when somebody collects it

    functools.update_wrapper(call, method)
    return call


def _or_cancelled(check: Callable[[], None] | None, cancelled: threading.Event | None = None) -> Callable[[], None]:
    """Return a check that also ends the work when its task is cancelled.

    Args:
        check: the caller's own.
        cancelled: set when that happened, for threads that trio does not know.
    """

    def both() -> None:
        if check is not None:
            check()
        if cancelled is not None and cancelled.is_set():
            raise _GivenUp
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:
            return

    return both


async def _leave(
    pull: Pull, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Let go of a pull, which takes files and the database, in a thread; also when the task was cancelled."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(pull.__exit__, kind, error, trace)


class AsyncStore:
    """A store of images for trio programs. An asynchronous context manager."""

    def __init__(self, store: Store) -> None:
        """Wrap an open store, which belongs to this object from now on; or use :meth:`open`."""
        self._store = store

    @classmethod
    async def open(cls, root: StrPath, *, runroot: StrPath | None = None, sync: bool = True) -> Self:
        """Open a store, made if it is not there. Arguments and errors are those of :meth:`Store.open`."""
        return cls(await trio.to_thread.run_sync(lambda: Store.open(root, runroot=runroot, sync=sync)))

    async def __aenter__(self) -> Self:
        """Return the store itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._store.close()

    async def close(self) -> None:
        """Close the store's files, also in a scope that was cancelled. Mounts stay."""
        self._store.close()
        await trio.lowlevel.checkpoint()

    load = _awaited(Store.load)
    images = _awaited(Store.images)
    resolve = _awaited(Store.resolve)
    config = _awaited(Store.config)
    manifest = _awaited(Store.manifest)
    document = _awaited(Store.document)
    layers = _awaited(Store.layers)
    history = _awaited(Store.history)
    tree = _awaited(Store.tree)
    which = _awaited(Store.which)
    analyze = _awaited(Store.analyze)
    read_layer = _iterated(Store.read_layer)
    verify_layer = _awaited(Store.verify_layer)
    tag = _awaited(Store.tag)
    remove_image = _awaited(Store.remove_image)
    containers = _awaited(Store.containers)
    mount = _awaited(Store.mount)
    umount = _awaited(Store.umount)
    mounts = _awaited(Store.mounts)
    remove_container = _awaited(Store.remove_container)
    diff = _iterated(Store.diff)
    usage = _awaited(Store.usage)
    info = _awaited(Store.info)
    check = _iterated(Store.check)
    gc = _awaited(Store.gc)
    apply = _awaited(Store.apply)
    commit = _awaited(Store.commit)
    container = _awaited(Store.container)
    export = _iterated(Store.export)
    extract = _awaited(Store.extract)
    find_layer = _awaited(Store.find_layer)
    import_tree = _awaited(Store.import_tree)
    layer_steps = _iterated(Store.layer_steps, batch=1)
    layer_tar = _iterated(Store.layer_tar)
    rebase = _awaited(Store.rebase)
    save = _awaited(Store.save)
    squash = _awaited(Store.squash)
    steps = _iterated(Store.steps, batch=1)

    async def pull(
        self,
        source: str,
        *,
        platform: Platform | str | None = None,
        all_platforms: bool = False,
        name: str | None = None,
        keep_blobs: bool = False,
        access: Access | None = None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Bring images in; see :meth:`Store.pull`. Cancelling leaves only what a next pull goes on from."""
        access = access or Access()
        store = self._store
        if not is_registry(source):
            load = functools.partial(store.pull, source, platform=platform, all_platforms=all_platforms, name=name)
            return await _cancellable(
                lambda polled: load(keep_blobs=keep_blobs, access=access, progress=progress, check=polled), check
            )
        with callbacks() as own, store._explaining("pull"):
            progress, check = own.progress(progress), own.check(check)

            async def attempt() -> list[ImageRecord]:
                async with contextlib.AsyncExitStack() as stack:
                    registries = stack.enter_context(Registries.open(access, check))

                    def begun() -> Pull:
                        remote = store._plan(registries, source, platform, all_platforms=all_platforms, name=name)
                        return Pull(
                            store._handle, remote, access, keep_blobs=keep_blobs, progress=progress, check=check
                        )

                    pull = await in_thread(begun, registries.http.abort)
                    stack.push_async_exit(functools.partial(_leave, pull))
                    return await pull_layers(pull, registries.http, access.jobs)

            try:
                records = await attempt()
            except LayerVanished:  # it is received now
                records = await attempt()
        return await trio.to_thread.run_sync(store._images, records)

    async def push(
        self,
        image: str | Image,
        destination: str | None = None,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        access: Access | None = None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> PushedImage:
        """Push an image to a registry; see :meth:`Store.push`."""
        access = access or Access()
        store = self._store
        with callbacks() as own, store._explaining("push"), Registries.open(access, own.check(check)) as registries:
            progress, check = own.progress(progress), own.check(check)

            def prepared() -> tuple[Push, Reference]:
                record, reference = store._pushed(image, destination)
                push = Push(
                    store._handle, record, registries.write_to(reference), access, compression=compression, level=level,
                    progress=progress, check=check,
                )  # fmt: skip
                return push, reference

            push, reference = await in_thread(prepared, registries.http.abort)
            digest = await push_layers(push, registries.http, access.jobs, reference.tag or DEFAULT_TAG)
        return PushedImage(reference, digest)
