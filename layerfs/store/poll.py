"""A caller's check, polled by long work that takes errors for damage: what the check raises is none."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable

from layerfs.errors import LayerfsError

__all__ = ["Poll", "raise_own"]

#: Errors that say something about this process or machine, and nothing about a file.
_NOT_OF_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EDEADLK, errno.ENOLCK})


class Poll:
    """Calls a check, and knows what it raised."""

    def __init__(self, check: Callable[[], None] | None) -> None:
        """Wrap a check; None does nothing."""
        self._check = check
        self._raised: Exception | None = None

    def __call__(self) -> None:
        """Call the check."""
        if self._check is None:
            return
        try:
            self._check()
        except Exception as error:
            self._raised = error
            raise

    def pass_on(self, error: Exception) -> None:
        """Raise an error again that is no damage: what the check raised, or one of this process."""
        cause = error.__cause__ if isinstance(error, LayerfsError) else error
        if self._raised is not None and self._raised in (error, cause):
            raise self._raised
        raise_own(error)


def raise_own(error: Exception) -> None:
    """Raise an error again that says something about this process, or the database, and nothing about a file."""
    cause = error.__cause__ if isinstance(error, LayerfsError) else error
    if isinstance(cause, sqlite3.Error):
        raise error
    if isinstance(cause, OSError) and cause.errno in _NOT_OF_THE_FILE:
        raise cause
