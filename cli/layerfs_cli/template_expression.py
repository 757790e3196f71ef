"""What stands between the braces of a template, but for the words that begin and end its parts."""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import click

from layerfs_cli.template_function import FUNCTIONS, Value

__all__ = ["Expression", "Scope", "Term", "split_tokens", "unsupported"]

_TOKEN: Final = re.compile(
    r'"(?:[^"\\]|\\.)*"|`[^`]*`|-?\d{1,9}(?:\.\d+)?(?![\w.])|:=|[=|,(]|\)(?:\.\w+)*|\$\w*(?:\.\w+)*|\.(?:\w+(?:\.\w+)*)?'
    r"|[A-Za-z]\w*"
)
_CONSTANTS: Final[dict[str, Value]] = {"true": True, "false": False, "nil": None}
_SUBSET: Final = f"supported are fields, variables, pipes, if, else, range, with, and {', '.join(FUNCTIONS)}"

#: Settings of an image that its config need not have.
_SETTINGS: Final = frozenset(
    ("cmd", "entrypoint", "env", "exposedports", "healthcheck", "labels", "onbuild", "shell", "stopsignal", "user",
     "volumes", "workingdir")
)  # fmt: skip


class _Settings(dict[str, Value]):
    """The settings of an image: docker lists all of them, and configs have those that are set."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a part of a template stands: ``.`` and the variables, of which ``$`` is what the template is given."""

    dot: Value
    variables: ChainMap[str, Value]

    def inner(self, dot: Value) -> Scope:
        """Return the scope of a part inside, whose variables end with it."""
        return Scope(dot, self.variables.new_child())


#: What an expression comes to.
Term = Callable[[Scope], Value]


class Expression:
    """Parses what stands between braces.

    Attributes:
        fields: first names of the fields of ``.`` that it uses.
        new: the variables that it declares.
    """

    def __init__(self, tokens: Sequence[str], code: str, declared: Sequence[str]) -> None:
        """Prepare for it.

        Args:
            tokens: what is parsed.
            code: how errors show it.
            declared: the variables that there are.
        """
        self._tokens = tokens
        self._code = code
        self._declared = declared
        self._at = 0
        self.fields: list[str] = []
        self.new: list[str] = []

    def statement(self, most: int = 1) -> tuple[list[str], Term]:
        """Parse all of it, and return the variables that get the value, at most so many, and the value.

        Raises:
            click.UsageError: it is broken, or uses what is not supported.
        """
        names: list[str] = []
        if any(token in {":=", "="} for token in self._tokens[1:4:2]):
            while len(names) < most and self._peek().startswith("$"):
                names.append(self._next())
                if self._peek() != ",":
                    break
                self._next()
            how = self._next()
            if how not in {":=", "="} or not all(re.fullmatch(r"\$\w+", name) for name in names):
                raise unsupported(self._code)
            if how == ":=":
                self.new = names
            elif not set(names) <= set(self._declared):
                raise unsupported(self._code)
        value = self._pipeline()
        if self._at < len(self._tokens):
            raise unsupported(self._code)
        return names, value

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _pipeline(self) -> Term:
        value = self._command(None)
        while self._peek() == "|":
            self._next()
            value = self._command(value)
        return value

    def _command(self, piped: Term | None) -> Term:
        """Parse what stands between two pipes; ``piped`` is its last argument, as in Go."""
        head = self._peek()
        function = FUNCTIONS.get(head)
        if function is None:
            value = self._operand()
            if piped is not None or not self._ends():
                raise unsupported(self._code)
            return value
        self._next()
        arguments = []
        while not self._ends():
            arguments.append(self._operand())
        if piped is not None:
            arguments.append(piped)
        if len(arguments) not in function.arguments:
            raise unsupported(self._code)
        if function.lazy:
            return lambda scope: function.call(*(lambda term=term: term(scope) for term in arguments))
        return lambda scope: function.call(*(term(scope) for term in arguments))

    def _ends(self) -> bool:
        return self._peek()[:1] in {"", "|", ")"}

    def _operand(self) -> Term:
        word = self._next()
        if word == "(":
            inner = self._pipeline()
            closing = self._next()
            if not closing.startswith(")"):
                raise unsupported(self._code)
            path = closing.split(".")[1:]
            return lambda scope: _walk(inner(scope), path)
        if word[:1] == "$":
            name, *path = word.split(".")
            if name not in self._declared:
                raise unsupported(self._code)
            self.fields += path[:1] if name == "$" else ()
            return lambda scope: _walk(scope.variables[name], path)
        if word[:1] == ".":
            path = word[1:].split(".") if len(word) > 1 else []
            self.fields += path[:1]
            return lambda scope: _walk(scope.dot, path)
        constant = _constant(word, self._code)
        return lambda _: constant


def unsupported(code: str) -> click.UsageError:
    """Return the error of a template that is broken, or of Go's and not supported."""
    return click.UsageError(f"unsupported template {{{{{code}}}}}: {_SUBSET}")


def split_tokens(code: str) -> list[str]:
    """Return the words and signs of what stands between braces: one at least.

    Raises:
        click.UsageError: there is something else.
    """
    tokens, position = [], 0
    while position < len(code):
        match = _TOKEN.match(code, position)
        if match is None:
            raise unsupported(code)
        tokens.append(match[0])
        position = match.end()
        while position < len(code) and code[position].isspace():
            position += 1
    if not tokens:
        raise unsupported(code)
    return tokens


def _constant(token: str, code: str) -> Value:
    if token in _CONSTANTS:
        return _CONSTANTS[token]
    if token[:1] == "`":
        return token[1:-1]
    try:
        if not token[:1].isalpha():
            return json.loads(token, strict=False)  # strings and numbers are written as in JSON
    except ValueError:
        pass
    raise unsupported(code)


def _walk(data: Value, path: Sequence[str]) -> Value:
    for name in path:
        if not isinstance(data, Mapping):
            raise click.UsageError(f"the template asks for .{name} of something that has no fields")
        wanted = name.replace("_", "").lower()
        found = name if name in data else next((key for key in data if key.replace("_", "").lower() == wanted), None)
        if found is None and isinstance(data, _Settings) and wanted in _SETTINGS:
            return None
        if found is None:
            raise click.UsageError(
                f"there is no field .{name}; there are {', '.join(f'.{key}' for key in data) or 'none'}"
            )
        data = data[found]
        if wanted == "config" and isinstance(data, Mapping):
            data = _Settings(data)
    return data
