"""What a registry answers to a request without the right credentials: the challenges of ``WWW-Authenticate``.

Only text is read here; what to do about a challenge is for ``registry/``. A header that is broken gives the challenges
before the break: a server that wants credentials should be asked with them, not refused for a missing quote.

Sources: RFC 9110 11.6.1 and 11.2 (the grammar); CNCF distribution, "Token Authentication Specification".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["MAX_HEADER", "Challenge", "parse_challenges"]

#: Characters of one header that are looked at; HTTP libraries cut lines at 64 KiB, real ones have some 200.
MAX_HEADER = 16 << 10

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SPACE = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a server offers.

    Attributes:
        scheme: in lower case: ``basic``, ``bearer``, or another one.
        parameters: by name in lower case, such as ``realm``, ``service`` and ``scope``.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Read the value of a ``WWW-Authenticate`` header; several headers may be joined with commas.

    Args:
        header: the value, whatever the server sent.

    Returns:
        The challenges in the server's order, up to the first place that breaks the grammar.
    """
    reader = _Reader(header[:MAX_HEADER])
    found: list[Challenge] = []
    while True:
        reader.skip(_SEPARATORS)
        scheme = reader.take(_TOKEN)
        if scheme is None:
            return tuple(found)
        parameters: dict[str, str] = {}
        found.append(Challenge(scheme.lower(), parameters))
        if not reader.skip(_SPACE):
            continue  # a scheme alone, or something that is none: the next round ends there
        if reader.take(_TOKEN68) is not None:
            continue
        while True:
            reader.skip(_SEPARATORS)
            start = reader.position
            name = reader.take(_TOKEN)
            if name is None:
                break
            reader.skip(_SPACE)
            if not reader.literal("="):
                reader.position = start  # the next challenge's scheme
                break
            reader.skip(_SPACE)
            value = reader.value()
            if value is None:
                return tuple(found)
            parameters.setdefault(name.lower(), value)


class _Reader:
    """A position in a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """Return what matches here and go behind it; None, and stay, where nothing does."""
        match = pattern.match(self.text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return match[0]

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Go behind what matches here; return whether that was anything."""
        start = self.position
        self.take(pattern)
        return self.position > start

    def literal(self, text: str) -> bool:
        """Go behind a text if it stands here; return whether it does."""
        if not self.text.startswith(text, self.position):
            return False
        self.position += len(text)
        return True

    def value(self) -> str | None:
        """Return a token or a quoted string without its quotes; None where neither stands."""
        quoted = _QUOTED.match(self.text, self.position)
        if quoted is None:
            return self.take(_TOKEN)
        self.position = quoted.end()
        return _ESCAPE.sub(r"\1", quoted[1])
