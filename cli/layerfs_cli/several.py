"""Doing something to each of several names: one that fails is reported and does not keep the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType

import click

from layerfs.errors import LayerfsError
from layerfs_cli.failure import report
from layerfs_cli.settings import settings_of

__all__ = ["Attempt", "each"]


def each(
    context: click.Context, names: Iterable[str], *, ignored: type[LayerfsError] | None = None
) -> Iterator[Attempt]:
    """Yield a context manager per name, whose block may fail; at the end, leave with the first failure's exit code.

    Args:
        context: of the verb.
        names: what to do it to, in this order.
        ignored: an error that is none.

    Raises:
        click.exceptions.Exit: with the first exit code, when some block failed.
    """
    attempts = []
    todo = list(names)
    for name in todo:
        attempt = Attempt(name, ignored, debug=settings_of(context).debug, naming=len(todo) > 1)
        attempts.append(attempt)
        yield attempt
    codes = [attempt.code for attempt in attempts if attempt.code]
    if codes:
        context.exit(codes[0])


class Attempt(AbstractContextManager[str]):
    """One name; its block may fail, and ``code`` is the exit code of that."""

    def __init__(self, name: str, ignored: type[LayerfsError] | None, *, debug: bool, naming: bool) -> None:
        """Take the name, which an error is told with if there are others; see :func:`each`."""
        self.code = 0
        self._name = name
        self._ignored = ignored
        self._debug = debug
        self._naming = naming

    def __enter__(self) -> str:
        """Return the name."""
        return self._name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Report an error of the block."""
        # A reader of standard output that went away ends all of it.
        if not isinstance(error, LayerfsError | OSError) or isinstance(error, BrokenPipeError):
            return False
        if self._ignored is None or not isinstance(error, self._ignored):
            self.code = report(error, debug=self._debug, name=self._name if self._naming else None)
        return True
