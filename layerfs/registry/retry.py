"""Trying again: which errors are worth it, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from layerfs.errors import RateLimited, RegistryError

__all__ = ["Backoff", "parse_retry_after"]

#: Seconds of the longest pause of our own; the jitter then spreads clients over half of it.
_LONGEST = 60.0

#: Seconds that a registry may make us wait by Retry-After; more is an error that says so.
_MOST_PATIENCE = 120.0

#: Seconds between two polls while waiting.
_POLL = 0.1


def parse_retry_after(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, a number or a date; None when it is neither.

    Source: RFC 9110 10.2.3.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _tell(error: RegistryError, pause: float) -> None:
    import logging  # noqa: PLC0415 - where all goes well it is not needed, and takes 5 ms to import

    logging.getLogger(__name__).warning("%s; trying again in %.1f s", error, pause)


class Backoff:
    """Counts the attempts of one job, and waits between them. For one thread."""

    def __init__(self, attempts: int, delay: float, check: Callable[[], None] | None) -> None:
        """Start with all attempts left.

        Args:
            attempts: how many there are altogether.
            delay: seconds before the second one, on average three quarters of it; then twice that, and so on.
            check: polled while waiting.
        """
        self._attempts = attempts
        self._delay = delay
        self._check = check
        self._made = 0

    def renew(self) -> None:
        """Take what was done so far as success: all attempts are left again."""
        self._made = 0

    def count(self) -> bool:
        """Take an attempt as made, without a pause; return whether any is left."""
        self._made += 1
        return self._made < self._attempts

    def wait(self, error: RegistryError, most: int | None = None) -> None:
        """Wait before the next attempt.

        Args:
            error: why there has to be another one.
            most: how many attempts there are at most as things stand; None for as many as there are.

        Raises:
            RegistryError: this error, when it is not temporary or no attempt is left.
            RateLimited: the registry wants a longer pause than anybody waits for.
        """
        self._made += 1
        if not error.temporary or self._made >= min(self._attempts, most or self._attempts):
            raise error
        pause = min(_LONGEST, self._delay * 2 ** (self._made - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        named = error.retry_after
        if named is not None:
            if named > _MOST_PATIENCE:
                raise RateLimited(
                    str(error), retry_after=named, hint=f"The registry says to come back in {named / 60:.0f} minutes."
                ) from error
            pause = max(pause, named)
        _tell(error, pause)
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            if self._check is not None:
                self._check()
            time.sleep(min(_POLL, left))
