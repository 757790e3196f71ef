"""A caller's check, polled by long work that takes errors for damage: what the check raises is none."""

from __future__ import annotations

import errno
from collections.abc import Callable

from layerfs.errors import LayerfsError

__all__ = ["Poll"]

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
        if error is self._raised:
            raise error
        if isinstance(error, OSError) and not isinstance(error, LayerfsError) and error.errno in _NOT_OF_THE_FILE:
            raise error
