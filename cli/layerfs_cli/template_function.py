"""The functions of templates: those of Go but for ``call`` and ``js``, and those that docker and podman add.

Source: the documentation of Go's package text/template, "Functions", and of fmt; docker's templates/templates.go.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from layerfs_cli.output import as_json

__all__ = ["FUNCTIONS", "Function", "Head", "Value", "as_text"]

Value = object

#: More than anybody writes.
_MANY: Final = 64

#: Spaces that ``pad`` puts beside something, and characters of a text that a function makes, at most.
_WIDEST: Final = 1000
_LONGEST: Final = 8 << 20

_VERB: Final = re.compile(r"%(?:%|([-+ 0]*)([0-9]{0,3})(?:\.([0-9]{1,3}))?([svqdboxXcUtfeg]))")


class Head(str):
    """What stands for a field while the heads of a table are made: most functions and all fields leave it as it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Function:
    """A function.

    Attributes:
        do: what it does; raises click.UsageError for values that it is not for.
        arguments: how many it may have.
        lazy: whether its arguments are functions that return them.
        keeps_heads: whether it is left out for the head of a column.
    """

    do: Callable[..., Value]
    arguments: range
    lazy: bool = False
    keeps_heads: bool = True

    @property
    def takes(self) -> str:
        """How many arguments it may have, in words."""
        least, most = self.arguments[0], self.arguments[-1]
        if most == _MANY - 1:
            return f"at least {least}"
        return str(least) if least == most else f"{least} to {most}"

    def __call__(self, terms: Sequence[Callable[[], Value]]) -> Value:
        """Return what it makes of arguments.

        Raises:
            click.UsageError: it is not for such, or makes too much of them.
        """
        if self.lazy:
            return self.do(*terms)
        values = [term() for term in terms]
        head = next((value for value in values if isinstance(value, Head)), None)
        if head is not None and self.keeps_heads:
            return head
        made = self.do(*values)
        if isinstance(made, str) and len(made) > _LONGEST:
            raise _too_long()
        return made


def as_text(value: Value) -> str:
    """Return a value as a template shows it: nothing for nil, lists as Go writes them, maps as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{' '.join(as_text(item) for item in value)}]"
    return as_json(value)


def _float_text(value: float) -> str:
    """Return a number as Go writes it, with an exponent from a million on."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return next(text for size in range(18) if float(text := f"{value:.{size}e}") == value)
    return str(int(value)) if value.is_integer() else repr(value)


def _too_long() -> click.UsageError:
    return click.UsageError(f"a template made a text of more than {_LONGEST >> 20} MiB")


def _compact_json(value: Value) -> str:
    return as_json(value, compact=True)


def _join(items: Value, separator: Value) -> str:
    if items is not None and not isinstance(items, list | tuple):
        raise click.UsageError("join in a template needs a list")
    texts, between = [as_text(item) for item in items or ()], as_text(separator)
    if sum(map(len, texts)) + len(between) * len(texts) > _LONGEST:
        raise _too_long()
    return between.join(texts)


def _split(value: Value, separator: Value) -> list[str]:
    text, between = as_text(value), as_text(separator)
    return text.split(between) if between else list(text)


def _title(value: Value) -> str:
    return re.sub(r"(?<!\S)\S", lambda match: match[0].upper(), as_text(value))


def _index(found: Value, *keys: Value) -> Value:
    """Return what a list has at a position, or a map under a key: nothing where a map has no such key, as in Go."""
    for key in keys:
        if isinstance(found, list | tuple) and isinstance(key, int) and not isinstance(key, bool):
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
    return any(_same(first, other) for other in others)


def _same(first: Value, second: Value) -> bool:
    """Compare two values; a text that is not there is an empty one to Go."""
    if first is None or second is None:
        return (first or "") == (second or "")
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Value, Value], bool]:
    def ordered(first: Value, second: Value) -> bool:
        if isinstance(first, Head) or isinstance(second, Head):
            return False
        for kind in (str, int | float):
            if isinstance(first, kind) and isinstance(second, kind) and bool not in {type(first), type(second)}:
                return compare(first, second)
        raise click.UsageError("a template compares two texts or two numbers")

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
    """Format values. One too many, too few or not for its verb is an error, of which Go writes into the text."""
    rest = list(values)

    def shown(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb is None:
            return "%"
        if not rest:
            raise click.UsageError(f"printf in a template: nothing for {match[0]}")
        value = rest.pop(0)
        try:
            return _formatted(flags, width, precision, "s" if isinstance(value, Head) else verb, value)
        except (TypeError, ValueError, OverflowError):
            raise click.UsageError(f"printf in a template: {match[0]} is not for {as_text(value)!r:.80}") from None

    text = as_text(form)
    if "%" in _VERB.sub("", text):
        raise click.UsageError(
            f"printf in a template knows %s %v %q %d %b %o %x %X %c %U %t %f %e %g, not {text!r:.80}"
        )
    text = _VERB.sub(shown, text)
    if rest:
        raise click.UsageError(f"printf in a template has {len(rest)} values too many")
    return text


def _formatted(flags: str, width: str, precision: str | None, verb: str, value: Value) -> str:
    """Return one value in the form of a verb of Go's.

    Raises:
        TypeError, ValueError, OverflowError: it has none.
    """
    point = f".{precision}" if precision else ""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if (verb in "feg" and (is_whole or isinstance(value, float))) or (verb in "doxX" and is_whole):
        return f"%{flags}{width}{point}{verb}" % value
    if verb in "xX" and isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        text = raw.hex(" ") if " " in flags else raw.hex()
        text = text.upper() if verb == "X" else text
    elif verb in "bcUq" and isinstance(value, int) and is_whole:
        # As in Go, a half of a character and what is none are shown as one that is unknown.
        letter = "\ufffd" if not 0 <= value < 0x11_0000 or 0xD800 <= value < 0xE000 else chr(value)
        text = {"b": f"{value:b}", "c": letter, "U": f"U+{value:04X}", "q": f"'{letter}'"}[verb]
    elif verb == "q":
        text = f"[{' '.join(map(_quoted, value))}]" if isinstance(value, list | tuple) else _quoted(value)
    elif verb in "sv" or (verb == "t" and isinstance(value, bool)):
        text = as_text(value)[: int(precision) if precision else None]
    else:
        raise TypeError(verb)
    if "-" in flags:
        return text.ljust(int(width or 0))
    return text.rjust(int(width or 0), "0" if "0" in flags else " ")


def _quoted(value: Value) -> str:
    return as_json(as_text(value))


def _pad(value: Value, before: Value, after: Value) -> str:
    text = as_text(value)
    left, right = (max(0, min(_number(count), _WIDEST)) for count in (before, after))
    return f"{' ' * left}{text}{' ' * right}" if text else ""


def _truncate(value: Value, length: Value) -> str:
    return as_text(value)[: max(0, _number(length))]


def _urlquery(value: Value) -> str:
    from urllib.parse import quote_plus

    return quote_plus(as_text(value), errors="surrogateescape")


_ONE: Final = range(1, 2)
_TWO: Final = range(2, 3)
_SOME: Final = range(1, _MANY)
_ANY: Final = range(_MANY)


def _comparison(do: Callable[..., Value], arguments: range = _TWO) -> Function:
    return Function(do, arguments, keeps_heads=False)


#: All of them, by name.
FUNCTIONS: Final[dict[str, Function]] = {
    "json": Function(_compact_json, _ONE),
    "join": Function(_join, _TWO),
    "lower": Function(lambda value: as_text(value).lower(), _ONE),
    "upper": Function(lambda value: as_text(value).upper(), _ONE),
    "title": Function(_title, _ONE),
    "split": Function(_split, _TWO),
    "pad": Function(_pad, range(3, 4)),
    "truncate": Function(_truncate, _TWO),
    "print": Function(_print, _ANY, keeps_heads=False),
    "println": Function(lambda *values: " ".join(map(as_text, values)) + "\n", _ANY, keeps_heads=False),
    "printf": Function(_printf, _SOME, keeps_heads=False),
    "html": Function(lambda value: html.escape(as_text(value)), _ONE),
    "urlquery": Function(_urlquery, _ONE),
    "index": Function(_index, _SOME),
    "slice": Function(_slice, range(1, 4)),
    "len": Function(_len, _ONE),
    "and": Function(_and, _SOME, lazy=True),
    "or": Function(_or, _SOME, lazy=True),
    "not": _comparison(lambda value: not value, _ONE),
    "eq": _comparison(_equals, range(2, _MANY)),
    "ne": _comparison(lambda first, second: not _same(first, second)),
    "lt": _comparison(_ordered(lambda first, second: first < second)),
    "le": _comparison(_ordered(lambda first, second: first <= second)),
    "gt": _comparison(_ordered(lambda first, second: first > second)),
    "ge": _comparison(_ordered(lambda first, second: first >= second)),
}
