"""Functions of the caller that long work calls, and telling what they raise from what the work does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.registry.loader import Progress

__all__ = ["Callbacks", "callbacks"]

P = ParamSpec("P")
T = TypeVar("T")


class Callbacks:
    """Functions of the caller, and what they raised: that stays as it is, though it may be an OSError as well."""

    def __init__(self) -> None:
        """Nothing was raised yet."""
        self._raised: list[BaseException] = []

    def check(self, function: Callable[[], None] | None) -> Callable[[], None] | None:
        """Return the caller's check, watched."""
        return None if function is None else self._watched(function)

    def progress(self, found: Progress | None) -> Progress | None:
        """Return the caller's progress, watched."""
        return None if found is None else _WatchedProgress(self._watched(found.update))

    def pieces(self, found: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the caller's pieces, watched."""
        try:
            yield from found
        except Exception as error:
            self._raised.append(error)
            raise

    def own(self, error: BaseException) -> BaseException | None:
        """Return what a function of the caller raised, if that is what an error was made of."""
        cause = error.__cause__
        return cause if any(cause is raised for raised in self._raised) else None

    def _watched(self, function: Callable[P, T]) -> Callable[P, T]:
        def call(*arguments: P.args, **options: P.kwargs) -> T:
            try:
                return function(*arguments, **options)
            except BaseException as error:
                self._raised.append(error)
                raise

        return call


class _WatchedProgress:
    """Passes updates on."""

    def __init__(self, update: Callable[[str, str, int, int | None], None]) -> None:
        self.update = update


@contextmanager
def callbacks() -> Iterator[Callbacks]:
    """Watch functions of the caller for the time of the block, and raise what they raised as it was."""
    found = Callbacks()
    try:
        yield found
    except LayerfsError as error:
        own = found.own(error)
        if own is not None:
            raise own from None
        raise
