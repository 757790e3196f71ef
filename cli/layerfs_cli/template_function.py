"""The functions of templates: those of Go that take no function, and those that docker and podman add.

Source: the documentation of Go's package text/template, "Functions"; docker's templates/templates.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from layerfs_cli.output import as_json

__all__ = ["FUNCTIONS", "Function", "Value", "as_text"]

Value = object

#: More than anybody writes.
_MANY: Final = 64

#: Spaces that ``pad`` and ``printf`` put beside something, at most.
_WIDEST: Final = 1000

_VERB: Final = re.compile(r"%(?:%|([-+ 0#]*)(\d{0,3})(?:\.(\d{1,3}))?([sdvqxXtf]))")


@dataclass(frozen=True, slots=True)
class Function:
    """A function.

    Attributes:
        call: what it does; raises click.UsageError for values that it is not for.
        arguments: how many it may have.
        lazy: whether its arguments are functions that return them.
    """

    call: Callable[..., Value]
    arguments: range
    lazy: bool = False


def as_text(value: Value) -> str:
    """Return a value as a template shows it: nothing for nil, lists as Go writes them, maps as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{' '.join(as_text(item) for item in value)}]"
    return as_json(value)


def _join(items: Value, separator: Value) -> str:
    if items is not None and not isinstance(items, list | tuple):
        raise click.UsageError("join in a template needs a list")
    return as_text(separator).join(map(as_text, items or ()))


def _split(value: Value, separator: Value) -> list[str]:
    text, between = as_text(value), as_text(separator)
    return text.split(between) if between else list(text)


def _index(found: Value, *keys: Value) -> Value:
    """Return what a list has at a position, or a map under a key: nothing where a map has no such key, as in Go."""
    for key in keys:
        if isinstance(found, list | tuple) and isinstance(key, int):
            if not 0 <= key < len(found):
                raise click.UsageError(f"index in a template: there is no item {key} of {len(found)}")
            found = found[key]
        elif found is None or (isinstance(found, Mapping) and isinstance(key, str)):
            found = None if found is None else found.get(key)
        else:
            raise click.UsageError("index in a template needs a list and a number, or a map and a text")
    return found


def _slice(value: Value, *ends: Value) -> Value:
    if not isinstance(value, str | list | tuple):
        raise click.UsageError("slice in a template needs a text or a list")
    start, end = [*map(_number, ends), *(0, len(value))[len(ends) :]]
    if not 0 <= start <= end <= len(value):
        raise click.UsageError(f"slice in a template: {start} to {end} of {len(value)}")
    return value[start:end]


def _len(value: Value) -> int:
    if value is not None and not isinstance(value, str | list | tuple | Mapping):
        raise click.UsageError("len in a template needs a text, a list or a map")
    return 0 if value is None else len(value)


def _number(value: Value) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise click.UsageError(f"a template needs a number, not {as_text(value)!r:.80}")
    return value


def _equals(first: Value, *others: Value) -> bool:
    return first in others


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Value, Value], bool]:
    def ordered(first: Value, second: Value) -> bool:
        if isinstance(first, str) != isinstance(second, str) or not isinstance(first, str | int | float):
            raise click.UsageError("a template compares two texts or two numbers")
        if not isinstance(second, str | int | float):
            raise click.UsageError("a template compares two texts or two numbers")
        return compare(first, second)

    return ordered


def _and(*terms: Callable[[], Value]) -> Value:
    """Return the first value that is empty, or the last; as in Go, what follows it is not looked at."""
    found: Value = None
    for term in terms:
        found = term()
        if not found:
            break
    return found


def _or(*terms: Callable[[], Value]) -> Value:
    """Return the first value that is not empty, or the last."""
    found: Value = None
    for term in terms:
        found = term()
        if found:
            break
    return found


def _print(*values: Value) -> str:
    """Return values one after the other, as Go with a space between two of which none is a text."""
    parts: list[str] = []
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            parts.append(" ")
        parts.append(as_text(value))
    return "".join(parts)


def _printf(form: Value, *values: Value) -> str:
    rest = list(values)

    def shown(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb is None:
            return "%"
        if not rest:
            raise click.UsageError(f"printf in a template: nothing for {match[0]}")
        value = rest.pop(0)
        if verb in "dxXf":
            if not isinstance(value, int | float if verb == "f" else int):
                raise click.UsageError(f"printf in a template: {match[0]} needs a number, not {as_text(value)!r:.80}")
            return f"%{flags}{width}{f'.{precision}' if precision else ''}{verb}" % value
        text = as_json(as_text(value)) if verb == "q" else as_text(value)
        text = text[: int(precision)] if precision else text
        return text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0))

    text = as_text(form)
    if "%" in _VERB.sub("", text):
        raise click.UsageError(f"printf in a template knows %s, %d, %v, %q, %x, %t, %f and %%, not {text!r:.80}")
    text = _VERB.sub(shown, text)
    if rest:
        raise click.UsageError(f"printf in a template has {len(rest)} values too many")
    return text


def _pad(value: Value, before: Value, after: Value) -> str:
    text = as_text(value)
    left, right = (max(0, min(_number(count), _WIDEST)) for count in (before, after))
    return f"{' ' * left}{text}{' ' * right}" if text else ""


def _truncate(value: Value, length: Value) -> str:
    return as_text(value)[: max(0, _number(length))]


_ONE: Final = range(1, 2)
_TWO: Final = range(2, 3)
_SOME: Final = range(1, _MANY)

#: All of them, by name.
FUNCTIONS: Final[dict[str, Function]] = {
    "json": Function(as_json, _ONE),
    "join": Function(_join, _TWO),
    "lower": Function(lambda value: as_text(value).lower(), _ONE),
    "upper": Function(lambda value: as_text(value).upper(), _ONE),
    "title": Function(lambda value: as_text(value).title(), _ONE),
    "split": Function(_split, _TWO),
    "pad": Function(_pad, range(3, 4)),
    "truncate": Function(_truncate, _TWO),
    "print": Function(_print, _SOME),
    "println": Function(lambda *values: " ".join(map(as_text, values)) + "\n", range(_MANY)),
    "printf": Function(_printf, _SOME),
    "index": Function(_index, range(2, _MANY)),
    "slice": Function(_slice, range(1, 4)),
    "len": Function(_len, _ONE),
    "and": Function(_and, _SOME, lazy=True),
    "or": Function(_or, _SOME, lazy=True),
    "not": Function(lambda value: not value, _ONE),
    "eq": Function(_equals, range(2, _MANY)),
    "ne": Function(lambda first, second: first != second, _TWO),
    "lt": Function(_ordered(lambda first, second: first < second), _TWO),
    "le": Function(_ordered(lambda first, second: first <= second), _TWO),
    "gt": Function(_ordered(lambda first, second: first > second), _TWO),
    "ge": Function(_ordered(lambda first, second: first >= second), _TWO),
}
