"""Text for people: sizes, times, tables' cells; and what hostile names may not do to a terminal."""

from __future__ import annotations

import re
import time
from typing import Final

__all__ = ["human_age", "human_size", "printable", "rfc3339", "shorten", "shown_name"]

#: Control characters, bidirectional overrides, and the surrogates that stand for bytes that are no UTF-8.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def printable(text: str) -> str:
    """Return a text without characters that could move the cursor, hide or reorder others; they become escapes."""
    return _UNSAFE.sub(_escape, text)


def shown_name(name: bytes, *, terminal: bool) -> bytes:
    r"""Return a name as it is, or, for a terminal, with what is unsafe there or no UTF-8 as ``\xNN``."""
    if not terminal:
        return name
    return printable(name.decode("utf-8", "surrogateescape")).encode()


def shorten(text: str, width: int) -> str:
    """Cut a text to a width, with a sign that it was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def human_size(size: int) -> str:
    """Return a size with three significant digits and decimal units: ``5.83MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        digits = f"{value:.3g}"
        if "e" not in digits:  # 999.9 rounds up into the next unit
            return digits + unit
        value /= 1000
    return f"{value:.3g}PB"


def human_age(ns: int | None, *, now: float | None = None) -> str:
    """Return how long ago a time was, in one unit: ``3 weeks ago``; empty for an unknown time."""
    if ns is None:
        return ""
    seconds = int((time.time() if now is None else now) - ns / 1e9)
    if seconds < 0:
        return "in the future"
    if seconds < 1:
        return "less than a second ago"
    for limit, unit, name in (
        (_MINUTE, 1, "second"),
        (_HOUR, _MINUTE, "minute"),
        (2 * _DAY, _HOUR, "hour"),
        (14 * _DAY, _DAY, "day"),
        (60 * _DAY, 7 * _DAY, "week"),
        (730 * _DAY, 30 * _DAY, "month"),
    ):
        if seconds < limit:
            count = seconds // unit
            return f"{count} {name}{'s' if count != 1 else ''} ago"
    return f"{seconds // (365 * _DAY)} years ago"


def rfc3339(ns: int | None) -> str | None:
    """Return a time as ``2026-11-01T12:00:00.5Z``; ``@SECONDS`` when the calendar does not reach so far."""
    if ns is None:
        return None
    seconds, fraction = divmod(ns, 10**9)
    try:
        moment = time.gmtime(seconds)
    except (OverflowError, OSError):
        return f"@{seconds}"
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{moment.tm_year:04d}-{time.strftime('%m-%dT%H:%M:%S', moment)}{digits}Z"


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
