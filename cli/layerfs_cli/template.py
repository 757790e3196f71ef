r"""Go's templates, as users of docker and podman write them after ``--format``.

``{{.Field}}``, ``{{.Field.Inner}}``, ``{{.}}``, ``$``, variables, strings in double or back quotes, numbers, true,
false and nil, parentheses, pipes, comments, ``if``, ``else``, ``range``, ``break``, ``continue``, ``with``, and the
functions of :data:`layerfs_cli.template_function.FUNCTIONS`; a dash inside of braces takes the white space outside
away. Outside of the braces ``\t`` and ``\n`` are tab and newline. Templates that define others are refused, before any
work is done.

Unlike in Go: a field that does not exist is an error, a setting of an image that is not set is nothing; nil is shown as
nothing and a map as JSON; texts are measured and cut in characters.

Source: the documentation of Go's package text/template; docker's cli/command/formatter for tables.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import click

from layerfs_cli.output import stdout_is_terminal
from layerfs_cli.template_expression import BLANKS, Expression, Heads, Scope, Term, broken, split_tokens
from layerfs_cli.template_function import Head, Value, as_text
from layerfs_cli.text import printable

__all__ = ["Template"]

#: What follows two braces, up to the next two that are in no text; and a comment, in which anything may stand.
_CODE: Final = re.compile(r'((?:"(?:[^"\\]|\\.)*"|`[^`]*`|(?!\}\})[^"`])*)\}\}', re.DOTALL)
_COMMENT: Final = re.compile(r"((?:-[ \t\r\n]+)?/\*(?:(?!\*/).)*\*/(?:[ \t\r\n]+-)?)\}\}", re.DOTALL)

#: As podman's manual writes it: the template is for the whole list.
_OF_THE_LIST: Final = re.compile(r"\s*\{\{-?\s*range\s+(?:\$\w+\s*(?:,\s*\$\w+\s*)?:=\s*)?\.\s*-?\}\}")

#: Rounds of all ranges together, and characters of what is written: more than anybody wants to see.
_MOST_ROUNDS: Final = 100_000
_LONGEST: Final = 64 << 20


class _Output:
    """What a template has written so far, in bounds.

    Attributes:
        parts: the texts.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._size = self._rounds = 0

    def write(self, text: str) -> None:
        self.parts.append(text)
        self._size += len(text)
        if self._size > _LONGEST:
            raise click.UsageError(f"the template writes more than {_LONGEST >> 20} MiB")

    def count_round(self) -> None:
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            raise click.UsageError(f"the template has ranges of more than {_MOST_ROUNDS} rounds")


#: What writes a part of a template.
_Part = Callable[[Scope, _Output], None]


class _LeaveError(Exception):
    """``break`` or ``continue``: ends the round of a range, and perhaps all."""

    def __init__(self, *, for_good: bool) -> None:
        super().__init__()
        self.for_good = for_good


class Template:
    """A parsed template.

    Attributes:
        of_list: whether it is for a whole list, and not for each row of one.
    """

    def __init__(self, text: str, *, table: bool = False) -> None:
        """Parse a template.

        Args:
            text: the template.
            table: blanks in it separate columns, where it has no tabs.

        Raises:
            click.UsageError: it is broken, or uses what is not supported.
        """
        self.of_list = _OF_THE_LIST.match(text) is not None
        with _bounded():
            self._part = _Parser(text, table=table).whole()

    def render(self, data: Value) -> str:
        """Fill the template in; on a terminal, fields without what could move its cursor, but for tabs and new lines.

        Raises:
            click.UsageError: a field does not exist; the message lists those that do.
        """
        output = _Output()
        with _bounded():
            self._part(Scope(data, ChainMap({"$": data})), output)
        return "".join(output.parts)

    def heads(self, names: Mapping[str, str]) -> str:
        """Return what stands above a table: the template with the head of each field for it."""
        return self.render([Heads(names)] if self.of_list else Heads(names))


@contextmanager
def _bounded() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise click.UsageError("the template is nested too deep") from None


class _Parser:
    """Reads the pieces of a template, text and code in turn."""

    def __init__(self, text: str, *, table: bool) -> None:
        self._pieces = _split(text)
        texts = self._pieces[::2]
        self._blanks_are_tabs = table and not any("\t" in piece or "\\t" in piece for piece in texts)
        self._at = 0
        self._declared = ["$"]
        self._ranges = 0  # around what is parsed
        self._trim()

    def whole(self) -> _Part:
        part, closed_by = self._block()
        if closed_by:
            raise broken(" ".join(closed_by), "there is nothing that it could close")
        return part

    def _trim(self) -> None:
        """Take the white space away that dashes point at."""
        for position in range(1, len(self._pieces), 2):
            code = self._pieces[position]
            if code[:1] == "-" and code[1:2] in BLANKS:
                code = code[1:]
                self._pieces[position - 1] = self._pieces[position - 1].rstrip(BLANKS)
            if code[-1:] == "-" and code[-2:-1] in BLANKS:
                code = code[:-1]
                self._pieces[position + 1] = self._pieces[position + 1].lstrip(BLANKS)
            self._pieces[position] = code.strip(BLANKS)

    def _block(self, opened_by: str = "") -> tuple[_Part, list[str]]:
        """Parse up to an ``else`` or ``end`` of its own, and return that too: nothing at the end of the template."""
        parts: list[_Part] = []
        declared = len(self._declared)
        closed_by: list[str] = []
        while self._at < len(self._pieces) and not closed_by:
            piece = self._pieces[self._at]
            is_code = self._at % 2
            self._at += 1
            if not is_code:
                parts.append(self._literal(piece))
            elif not piece.startswith("/*"):
                tokens = split_tokens(piece)
                if tokens[0] in {"else", "end"}:
                    closed_by = tokens
                else:
                    parts.append(self._action(tokens, piece))
        del self._declared[declared:]
        if opened_by and not closed_by:
            raise broken(opened_by, "its {{end}} is missing")
        return _sequence(parts), closed_by

    def _literal(self, piece: str) -> _Part:
        text = piece.replace("\\t", "\t").replace("\\n", "\n")
        if self._blanks_are_tabs:
            text = re.sub(" +", "\t", text)
        return lambda _, output: output.write(text)

    def _action(self, tokens: list[str], code: str) -> _Part:
        if tokens[0] in {"if", "with", "range"}:
            return self._branches(tokens, code)
        if tokens in (["break"], ["continue"]):
            if not self._ranges:
                raise broken(code, "it is in no range")
            return _leave(for_good=tokens == ["break"])
        expression = Expression(tokens, code, self._declared)
        names, value = expression.statement()
        self._declared += expression.new
        if names:
            return lambda scope, _: _assign(scope, names, value(scope), new=bool(expression.new))
        return lambda scope, output: output.write(_shown(as_text(value(scope))))

    def _branches(self, tokens: list[str], code: str) -> _Part:
        """Parse ``if``, ``with`` or ``range`` up to its end."""
        kind = tokens[0]
        declared = len(self._declared)
        expression = Expression(tokens[1:], code, self._declared)
        names, value = expression.statement(most=2 if kind == "range" else 1)
        self._declared += expression.new
        self._ranges += kind == "range"
        body, closed_by = self._block(code)
        self._ranges -= kind == "range"
        otherwise: _Part = _sequence(())
        if closed_by == ["else"]:
            otherwise, closed_by = self._block(code)
        elif closed_by[:2] == ["else", kind] and kind != "range":
            otherwise, closed_by = self._branches(closed_by[1:], " ".join(closed_by)), ["end"]
        if closed_by != ["end"]:
            raise broken(" ".join(closed_by), f"it does not fit {{{{{code:.40}}}}}")
        del self._declared[declared:]
        if kind == "range":
            return _range(names, value, body, otherwise, new=bool(expression.new))

        def choose(scope: Scope, output: _Output) -> None:
            found = value(scope)
            own = scope.inner(scope.dot)
            _assign(own, names, found, new=bool(expression.new))
            if not found:
                otherwise(own, output)
            else:
                body(own.inner(found) if kind == "with" else own, output)

        return choose


def _split(text: str) -> list[str]:
    """Return what a template is made of: text, what stands between two braces, text, and so on.

    Raises:
        click.UsageError: braces are not closed.
    """
    pieces: list[str] = []
    at = 0
    while (start := text.find("{{", at)) >= 0:
        form = _COMMENT if text.startswith(("/*", "- /*"), start + 2) else _CODE
        match = form.match(text, start + 2)
        if match is None:
            raise click.UsageError(f"in the template braces are not closed: {text[start : start + 40]!r}")
        pieces += [text[at:start], match[1]]
        at = match.end()
    return [*pieces, text[at:]]


def _sequence(parts: Sequence[_Part]) -> _Part:
    def write(scope: Scope, output: _Output) -> None:
        for part in parts:
            part(scope, output)

    return write


def _leave(*, for_good: bool) -> _Part:
    def leave(_scope: Scope, _output: _Output) -> None:
        raise _LeaveError(for_good=for_good)

    return leave


def _range(names: Sequence[str], value: Term, body: _Part, otherwise: _Part, *, new: bool) -> _Part:
    def write(scope: Scope, output: _Output) -> None:
        found = value(scope)
        pairs = _pairs(found)
        own = scope.inner(scope.dot)
        _assign(own, names, *(found for _ in names), new=new)
        for pair in pairs:
            output.count_round()
            _assign(own, names, *(pair if len(names) > 1 else pair[1:]), new=new)
            try:
                body(own.inner(pair[1]), output)
            except _LeaveError as leaving:
                if leaving.for_good:
                    break
        if not pairs:
            otherwise(own, output)

    return write


def _pairs(found: Value) -> list[tuple[Value, Value]]:
    """Return what a range goes over: places or keys, each with what is there."""
    if isinstance(found, Mapping):
        return [(key, found[key]) for key in sorted(found)]
    if found is None or isinstance(found, list | tuple):
        return list(enumerate(found or ()))
    if isinstance(found, Head):
        return [(found, found)]
    if isinstance(found, int) and not isinstance(found, bool) and found <= _MOST_ROUNDS:
        return [(number, number) for number in range(found)]
    raise click.UsageError(f"range in a template needs a list, a map or a small number, not {as_text(found)!r:.80}")


def _assign(scope: Scope, names: Sequence[str], *values: Value, new: bool) -> None:
    """Give variables their values, where they were declared if they are not new."""
    for name, value in zip(names, values, strict=False):
        if new:
            scope.variables[name] = value
        else:
            next(level for level in scope.variables.maps if name in level)[name] = value


def _shown(text: str) -> str:
    if not stdout_is_terminal():
        return text
    return "".join(part if part in {"\t", "\n"} else printable(part) for part in re.split(r"([\t\n])", text))
