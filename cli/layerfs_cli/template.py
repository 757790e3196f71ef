r"""The part of Go's templates that users of docker and podman write after ``--format``.

``{{.Field}}``, ``{{.Field.Inner}}``, ``{{.}}``, strings in double or back quotes, whole numbers, the functions json,
join, lower, upper, split, println, index and len, pipes; outside the braces, ``\t`` and ``\n`` are tab and newline.
Nothing else: a template that needs more is refused before any work is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import click

from layerfs_cli.output import as_json, stdout_is_terminal
from layerfs_cli.text import printable

__all__ = ["Template"]

_SUBSET: Final = (
    "supported are {{.Field}}, json, join, lower, upper, split, println, index, len, pipes and the prefix 'table'"
)
_TOKEN: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|\.[\w.]*|[A-Za-z]+|\d{1,9}(?![\w.])|\|)')

#: Settings of an image that its config need not have.
_SETTINGS: Final = frozenset(
    ("cmd", "entrypoint", "env", "exposedports", "healthcheck", "labels", "onbuild", "shell", "stopsignal", "user",
     "volumes", "workingdir")
)  # fmt: skip

Value = object
Term = Callable[[Value], Value]


class Template:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        """Parse a template.

        Raises:
            click.UsageError: it is broken, or uses what is not supported.
        """
        self.fields: list[str] = []
        self._parts: list[str | Term] = []
        # As in Go, a dash inside of braces takes the white space outside of them away.
        trimmed = re.sub(r"\s-\}\}\s*", " }}", re.sub(r"\s*\{\{-\s", "{{ ", text))
        # The odd pieces are what stood between braces.
        for index, piece in enumerate(re.split(r"\{\{(.*?)\}\}", trimmed, flags=re.DOTALL)):
            if index % 2:
                self._parts.append(self._parse(piece))
            elif "{{" in piece or "}}" in piece:
                raise click.UsageError(f"braces do not match in the template {text!r}")
            else:
                self._parts.append(piece.replace("\\t", "\t").replace("\\n", "\n"))

    def render(self, data: Value) -> str:
        """Fill the template in; on a terminal, fields without what could move its cursor, but for tabs and new lines.

        Raises:
            click.UsageError: a field does not exist; the message lists those that do.
        """
        return "".join(part if isinstance(part, str) else _shown(_text(part(data))) for part in self._parts)

    def _parse(self, code: str) -> Term:
        tokens: list[str] = []
        position = 0
        code = code.strip()
        while position < len(code):
            match = _TOKEN.match(code, position)
            if match is None:
                raise _unsupported(code)
            tokens.append(match[1])
            position = match.end()
        value: Term | None = None
        while tokens:
            end = tokens.index("|") if "|" in tokens else len(tokens)
            value = self._command(tokens[:end], value, code)
            if end == len(tokens) - 1:
                raise _unsupported(code)
            tokens = tokens[end + 1 :]
        if value is None:
            raise _unsupported(code)
        return value

    def _command(self, tokens: Sequence[str], piped: Term | None, code: str) -> Term:
        """Parse what stands between two pipes; ``piped`` is its last argument, as in Go."""
        if not tokens:
            raise _unsupported(code)
        head, *rest = tokens
        if not head.isalpha():
            if rest or piped is not None:
                raise _unsupported(code)
            return self._term(head, code)
        function = _FUNCTIONS.get(head)
        arguments = [self._term(token, code) for token in rest]
        if piped is not None:
            arguments.append(piped)
        if function is None or len(arguments) not in _ARITY.get(head, (1,)):
            raise _unsupported(code)
        return lambda data: function(*(argument(data) for argument in arguments))

    def _term(self, token: str, code: str) -> Term:
        if token[0] == "`":
            return lambda _: token[1:-1]
        if token.isdigit():
            number = int(token)
            return lambda _: number
        if token[0] == '"':
            try:
                text = json.loads(token)
            except ValueError as error:
                raise _unsupported(code) from error
            return lambda _: text
        path = token[1:].split(".") if len(token) > 1 else []
        if token[0] != "." or not all(path):
            raise _unsupported(code)
        self.fields += path[:1]
        return lambda data: _walk(data, path)


def _walk(data: Value, path: Sequence[str]) -> Value:
    for name in path:
        if not isinstance(data, Mapping):
            raise click.UsageError(f"the template asks for .{name} of something that has no fields")
        if name in data:
            data = data[name]
            continue
        wanted = name.replace("_", "").lower()
        found = [key for key in data if str(key).replace("_", "").lower() == wanted]
        if not found and wanted in _SETTINGS and path[0].lower() == "config":
            return None  # docker lists all of them, and configs have those that are set
        if not found:
            raise click.UsageError(
                f"there is no field .{name}; there are {', '.join(f'.{key}' for key in data) or 'none'}"
            )
        data = data[found[0]]
    return data


def _shown(text: str) -> str:
    if not stdout_is_terminal():
        return text
    return "".join(part if part in {"\t", "\n"} else printable(part) for part in re.split(r"([\t\n])", text))


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{' '.join(_text(item) for item in value)}]"
    return as_json(value)


def _join(items: Value, separator: Value) -> str:
    if not isinstance(items, list | tuple):
        raise click.UsageError("join in a template needs a list")
    return _text(separator).join(map(_text, items))


def _index(found: Value, *keys: Value) -> Value:
    """Return what a list has at a position, or a map under a key: nothing where a map has no such key, as in Go."""
    for key in keys:
        if isinstance(found, list | tuple) and isinstance(key, int):
            if key >= len(found):
                raise click.UsageError(f"index in a template: there is no item {key} of {len(found)}")
            found = found[key]
        elif found is None or (isinstance(found, Mapping) and isinstance(key, str)):
            found = None if found is None else found.get(key)
        else:
            raise click.UsageError("index in a template needs a list and a number, or a map and a text")
    return found


def _len(value: Value) -> int:
    if value is not None and not isinstance(value, str | list | tuple | Mapping):
        raise click.UsageError("len in a template needs a text, a list or a map")
    return 0 if value is None else len(value)


_FUNCTIONS: Final[dict[str, Callable[..., Value]]] = {
    "json": as_json,
    "join": _join,
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
    "split": lambda value, separator: _text(value).split(_text(separator)),
    "println": lambda value: _text(value) + "\n",
    "index": _index,
    "len": _len,
}
#: How many arguments a function may have, if it is not one.
_ARITY: Final = {"join": (2,), "split": (2,), "index": (2, 3, 4)}


def _unsupported(code: str) -> click.UsageError:
    return click.UsageError(f"unsupported template {{{{{code}}}}}: {_SUBSET}")
