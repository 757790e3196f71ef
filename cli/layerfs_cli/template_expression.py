"""What stands between the braces of a template, but for the words that begin and end its parts."""

from __future__ import annotations

import ast
import math
import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import click

from layerfs_cli.template_function import FUNCTIONS, Head, Value

__all__ = ["BLANKS", "Expression", "Heads", "Scope", "Term", "broken", "split_tokens"]

#: White space between braces; Go knows no other.
BLANKS: Final = " \t\r\n"

#: None of the repeats here is possessive: Python 3.11.2, which Debian 12 has, gets these wrong.
_TOKEN: Final = re.compile(
    r'"(?:[^"\\]|\\.)*"|`[^`]*`|[+-]?\.?[0-9](?:[0-9a-zA-Z_.]|(?<=[eE])[+-])*|:=|[=|,(]|\)(?:\.\w+)*'
    r"|\$\w*(?:\.\w+)*|\.(?:\w+(?:\.\w+)*)?|[A-Za-z_]\w*"
)
#: A text of Go's, which Python reads in the same way.
_TEXT: Final = re.compile(
    r'"(?:[^"\\\n]|\\(?:[abfnrtv\\"]|x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}))*"'
)
_OCTAL: Final = re.compile(r"[+-]?0[0-7_]+")
_DIGITS: Final = frozenset("0123456789")
#: Words of Go's templates that begin something.
_WORDS: Final = frozenset(("if", "else", "end", "range", "with", "break", "continue", "define", "template", "block"))
_CONSTANTS: Final[dict[str, Value]] = {"true": True, "false": False, "nil": None}

#: Settings of an image that its config need not have.
_SETTINGS: Final = frozenset(
    ("cmd", "entrypoint", "env", "exposedports", "healthcheck", "labels", "onbuild", "shell", "stopsignal", "user",
     "volumes", "workingdir")
)  # fmt: skip

#: Maps whose keys somebody has made up; and those of them whose values are structs of Go, which are never false.
_FREE: Final = frozenset(("annotations", "exposedports", "labels", "volumes"))
_OF_STRUCTS: Final = frozenset(("exposedports", "volumes"))


class _Settings(dict[str, Value]):
    """The settings of an image: docker lists all of them, and configs have those that are set."""


class _FreeMap(dict[str, Value]):
    """A map whose keys are what they are; one that is missing is nil."""


class _Struct(dict[str, Value]):
    """A struct of Go, which is true without fields, too."""

    def __bool__(self) -> bool:
        return True


class Heads(Mapping[str, Value]):
    """Stands for a row while the heads of a table are made: its fields are their heads, and it has any."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """Take the heads that are not just the name of the field."""
        self._names = names

    def __getitem__(self, field: str) -> Head:
        """Return the head of a field: CreatedAt is CREATED AT."""
        return Head(self._names.get(field) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", field).upper())

    def __iter__(self) -> Iterator[str]:
        """Yield the fields whose heads are known."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many these are."""
        return len(self._names)


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
        self.new: list[str] = []

    def statement(self, most: int = 1) -> tuple[list[str], Term]:
        """Parse all of it, and return the variables that get the value, at most so many, and the value.

        Raises:
            click.UsageError: it is broken, or uses what is not supported.
        """
        names: list[str] = []
        if any(token in {":=", "="} for token in self._tokens[1:4:2]):
            while len(names) < most and re.fullmatch(r"\$\w+", self._peek()):
                names.append(self._next())
                if self._peek() != ",":
                    break
                self._next()
            how = self._next()
            if how not in {":=", "="} or not names:
                raise self._broken(f"{how or 'the end'} is out of place")
            if how == ":=":
                self.new = names
            for name in names if how == "=" else ():
                self._check(name)
        value = self._pipeline()
        if self._at < len(self._tokens):
            raise self._broken(f"{self._peek()} is out of place")
        return names, value

    def _broken(self, what: str) -> click.UsageError:
        return broken(self._code, what)

    def _check(self, variable: str) -> None:
        if variable not in self._declared:
            raise self._broken(f"there is no variable {variable}")

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
            if head in _WORDS:
                raise self._broken(f"{head} cannot stand there, or is not supported")
            if head[:1].isalpha() and head not in _CONSTANTS:
                raise self._broken(f"there is no function {head}; there are {', '.join(FUNCTIONS)}")
            value = self._operand()
            if piped is not None or not self._ends():
                raise self._broken("only a function has arguments" if piped is None else "a pipe leads to a function")
            return value
        self._next()
        terms = []
        while not self._ends():
            terms.append(self._operand())
        if piped is not None:
            terms.append(piped)
        if len(terms) not in function.arguments:
            raise self._broken(f"{head} has {len(terms)} arguments, and takes {function.takes}")
        return lambda scope: function([lambda term=term: term(scope) for term in terms])  # type: ignore[misc]

    def _ends(self) -> bool:
        return self._peek()[:1] in {"", "|", ")"}

    def _operand(self) -> Term:
        word = self._next()
        if word == "(":
            inner = self._pipeline()
            closing = self._next()
            if not closing.startswith(")"):
                raise self._broken("a parenthesis is not closed")
            path = closing.split(".")[1:]
            return lambda scope: _walk(inner(scope), path)
        if word[:1] == "$":
            name, *path = word.split(".")
            self._check(name)
            return lambda scope: _walk(scope.variables[name], path)
        if word[:1] == "." and word[1:2] not in _DIGITS:
            path = word[1:].split(".") if len(word) > 1 else []
            return lambda scope: _walk(scope.dot, path)
        constant = _constant(word, self._code)
        return lambda _: constant


def broken(code: str, what: str) -> click.UsageError:
    """Return the error of a template that is broken, or of Go's and not supported."""
    shown = code if len(code) <= 80 else f"{code[:79]}…"
    return click.UsageError(f"bad template {{{{{shown}}}}}: {what}")


def split_tokens(code: str) -> list[str]:
    """Return the words and signs of what stands between braces: one at least.

    Raises:
        click.UsageError: there is something else.
    """
    tokens, position = [], 0
    while position < len(code):
        match = _TOKEN.match(code, position)
        if match is None:
            raise broken(code, f"{code[position : position + 20]!r} is nothing that templates know")
        tokens.append(match[0])
        position = match.end()
        while position < len(code) and code[position] in BLANKS:
            position += 1
    if not tokens:
        raise broken(code, "there is nothing in it")
    return tokens


def _constant(word: str, code: str) -> Value:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if word[:1] == "`":
        return word[1:-1]
    try:
        if _TEXT.fullmatch(word):
            text: str = ast.literal_eval(word)
            text.encode()  # no halves of characters
            return text
        if word.lstrip("+-.")[:1] in _DIGITS:
            return _number(word)
    except (ValueError, SyntaxError):
        pass
    if not word:
        raise broken(code, "something is missing at its end")
    raise broken(code, f"{word} is out of place" if len(word) == 1 else f"{word} is no text or number of Go's")


def _number(word: str) -> int | float:
    try:
        number: int | float = int(word, 8) if _OCTAL.fullmatch(word) else int(word, 0)
    except ValueError:
        number = float(word)
    if not math.isfinite(number) or (isinstance(number, int) and not -(1 << 63) <= number < 1 << 63):
        raise ValueError(word)
    return number


def _walk(data: Value, path: Sequence[str]) -> Value:
    is_free = False
    for name in path:
        if isinstance(data, Head) or (data is None and is_free):
            return data
        if isinstance(data, Heads):
            data = data[name]
            continue
        if not isinstance(data, Mapping):
            raise click.UsageError(f"the template asks for .{name} of something that has no fields")
        if isinstance(data, _FreeMap):
            data, is_free = data.get(name), False
            continue
        wanted = name.replace("_", "").lower()
        data = _field(data, name, wanted)
        is_free = wanted in _FREE
        if wanted == "config" and isinstance(data, Mapping):
            data = _Settings(data)
        elif is_free and isinstance(data, Mapping):
            holds_structs = wanted in _OF_STRUCTS
            data = _FreeMap((key, _Struct() if holds_structs and value == {} else value) for key, value in data.items())
    return data


def _field(data: Mapping[str, Value], name: str, wanted: str) -> Value:
    """Return a field, whose name may be spelled in another case and with underscores."""
    found = name if name in data else next((key for key in data if key.replace("_", "").lower() == wanted), None)
    if found is not None:
        return data[found]
    if isinstance(data, _Settings) and wanted in _SETTINGS:
        return None
    raise click.UsageError(f"there is no field .{name}; there are {', '.join(f'.{key}' for key in data) or 'none'}")
