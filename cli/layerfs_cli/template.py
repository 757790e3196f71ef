r"""Go's templates, as users of docker and podman write them after ``--format``.

``{{.Field}}``, ``{{.Field.Inner}}``, ``{{.}}``, ``$``, variables, strings in double or back quotes, numbers, true,
false and nil, parentheses, pipes, comments, ``if``, ``else``, ``range``, ``with``, and the functions of
:data:`layerfs_cli.template_function.FUNCTIONS`; a dash inside of braces takes the white space outside away. Outside of
the braces ``\t`` and ``\n`` are tab and newline. Templates that define others, break and continue are refused, before
any work is done.

Source: the documentation of Go's package text/template; docker's cli/command/formatter for tables.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import click

from layerfs_cli.output import stdout_is_terminal
from layerfs_cli.template_expression import Expression, Scope, Term, split_tokens, unsupported
from layerfs_cli.template_function import Value, as_text
from layerfs_cli.text import printable

__all__ = ["Template"]

#: What stands between braces, which may stand in a string there.
_CODE: Final = re.compile(r'\{\{((?:"(?:[^"\\]|\\.)*"|`[^`]*`|[^"`])*?)\}\}', re.DOTALL)
#: What writes a part of a template.
_Part = Callable[[Scope, list[str]], None]


class Template:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        """Parse a template.

        Raises:
            click.UsageError: it is broken, or uses what is not supported.
        """
        parser = _Parser(text)
        self._part = parser.whole()
        self._columns = parser.columns

    def render(self, data: Value) -> str:
        """Fill the template in; on a terminal, fields without what could move its cursor, but for tabs and new lines.

        Raises:
            click.UsageError: a field does not exist; the message lists those that do.
        """
        written: list[str] = []
        self._part(Scope(data, ChainMap({"$": data})), written)
        return "".join(written)

    def heads(self, names: Mapping[str, str]) -> list[str]:
        """Return the heads of what lies between tabs: the names of the fields there, or the fields in capitals."""
        return [" ".join(names.get(field, field.upper()) for field in column) for column in self._columns]


class _Parser:
    """Reads the pieces of a template, text and code in turn.

    Attributes:
        columns: the fields of the data that are written before each tab, and after the last one.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._pieces = _CODE.split(text)
        self._at = 0
        self._declared = ["$"]
        self._elsewhere = 0  # in so many parts where . is something else
        self.columns: list[list[str]] = [[]]
        self._trim()

    def whole(self) -> _Part:
        part, closed_by = self._block()
        if closed_by:
            raise click.UsageError(f"{{{{{closed_by[0]}}}}} closes nothing in the template {self._text!r}")
        return part

    def _trim(self) -> None:
        """Take the white space away that dashes point at."""
        for position in range(1, len(self._pieces), 2):
            code = self._pieces[position]
            if re.match(r"-\s", code):
                code = code[1:]
                self._pieces[position - 1] = self._pieces[position - 1].rstrip()
            if re.search(r"\s-\Z", code):
                code = code[:-1]
                self._pieces[position + 1] = self._pieces[position + 1].lstrip()
            self._pieces[position] = code.strip()

    def _block(self, *, inner: bool = False) -> tuple[_Part, list[str]]:
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
            elif not (piece.startswith("/*") and piece.endswith("*/")):
                tokens = split_tokens(piece)
                if tokens[0] in {"else", "end"}:
                    closed_by = tokens
                else:
                    parts.append(self._action(tokens, piece))
        del self._declared[declared:]
        if inner and not closed_by:
            raise click.UsageError(f"{{{{end}}}} is missing in the template {self._text!r}")
        return _sequence(parts), closed_by

    def _literal(self, piece: str) -> _Part:
        if "{{" in piece or "}}" in piece:
            raise click.UsageError(f"braces do not match in the template {self._text!r}")
        text = piece.replace("\\t", "\t").replace("\\n", "\n")
        self.columns += [[] for _ in range(text.count("\t"))]
        return lambda _, written: written.append(text)

    def _action(self, tokens: list[str], code: str) -> _Part:
        if tokens[0] in {"if", "with", "range"}:
            return self._branches(tokens, code)
        expression = Expression(tokens, code, self._declared)
        names, value = expression.statement()
        self._declared += expression.new
        if names:
            return lambda scope, _: _assign(scope, names, value(scope), new=bool(expression.new))
        if not self._elsewhere:
            self.columns[-1] += expression.fields
        return lambda scope, written: written.append(_shown(as_text(value(scope))))

    def _branches(self, tokens: list[str], code: str) -> _Part:
        """Parse ``if``, ``with`` or ``range`` up to its end."""
        kind = tokens[0]
        declared = len(self._declared)
        expression = Expression(tokens[1:], code, self._declared)
        names, value = expression.statement(most=2 if kind == "range" else 1)
        self._declared += expression.new
        self._elsewhere += kind != "if"
        body, closed_by = self._block(inner=True)
        self._elsewhere -= kind != "if"
        otherwise: _Part = _sequence(())
        if closed_by == ["else"]:
            otherwise, closed_by = self._block(inner=True)
        elif closed_by[:2] == ["else", kind] and kind != "range":
            otherwise, closed_by = self._branches(closed_by[1:], " ".join(closed_by)), ["end"]
        if closed_by != ["end"]:
            raise unsupported(" ".join(closed_by))
        del self._declared[declared:]
        if kind == "range":
            return _range(names, value, body, otherwise, new=bool(expression.new))

        def choose(scope: Scope, written: list[str]) -> None:
            found = value(scope)
            own = scope.inner(scope.dot)
            _assign(own, names, found, new=bool(expression.new))
            if not found:
                otherwise(own, written)
            else:
                body(own.inner(found) if kind == "with" else own, written)

        return choose


def _sequence(parts: Sequence[_Part]) -> _Part:
    def write(scope: Scope, written: list[str]) -> None:
        for part in parts:
            part(scope, written)

    return write


def _range(names: Sequence[str], value: Term, body: _Part, otherwise: _Part, *, new: bool) -> _Part:
    def write(scope: Scope, written: list[str]) -> None:
        found = value(scope)
        if isinstance(found, Mapping):
            pairs = [(key, found[key]) for key in sorted(found)]
        elif found is None or isinstance(found, list | tuple):
            pairs = list(enumerate(found or ()))
        else:
            raise click.UsageError(f"range in a template needs a list or a map, not {as_text(found)!r:.80}")
        for pair in pairs:
            own = scope.inner(pair[1])
            _assign(own, names, *(pair if len(names) > 1 else pair[1:]), new=new)
            body(own, written)
        if not pairs:
            otherwise(scope.inner(scope.dot), written)

    return write


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
