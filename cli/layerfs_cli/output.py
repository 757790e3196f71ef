r"""Results on standard output: lines, JSON, tables, templates.

JSON is pure ASCII where it has to be: a byte of a name that is no UTF-8, say 0xff, is written as the escape
``\udcff``, which Python's ``surrogateescape`` turns back into the byte; control characters are always escapes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import click

from layerfs_cli.text import printable

if TYPE_CHECKING:
    from layerfs_cli.template import Template

__all__ = [
    "STDOUT",
    "Column",
    "Format",
    "FormatType",
    "as_json",
    "flush",
    "format_option",
    "print_document",
    "print_listing",
    "refuse_terminal",
    "standard_output",
    "stdout_is_terminal",
    "write",
    "write_to",
]

#: What JSON allows but terminals and encoders do not.
_ESCAPED: Final = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_GUTTER: Final = "  "

#: What errors call standard output.
STDOUT: Final = "standard output"


def stdout_is_terminal() -> bool:
    """Whether somebody reads what is written to standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def refuse_terminal(context: click.Context) -> None:
    """Refuse to write a tar to a terminal, or to nowhere.

    Raises:
        click.UsageError: standard output is one, or was closed.
    """
    if sys.stdout is None or sys.stdout.isatty():
        what = "closed" if sys.stdout is None else "a terminal"
        raise click.UsageError(f"standard output is {what}: redirect it, or name a file with -o", context)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, and the field of a row that it shows."""

    head: str
    field: str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """How a list is printed: ``kind`` is table, json, jsonl or template; ``aligned`` templates are tables too."""

    kind: str
    template: Template | None = None
    aligned: bool = False


if TYPE_CHECKING:
    _FormatParameter = click.ParamType[Format]
else:
    _FormatParameter = click.ParamType  # generic in newer versions of click only


class FormatType(_FormatParameter):
    """The value of ``--format``."""

    name = "FORMAT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Format:
        """Parse the value, so that a wrong one is refused before any work is done."""
        if isinstance(value, Format):
            return value
        text = str(value)
        if text in {"table", "json", "jsonl"}:
            return Format(text)
        if "{{" not in text:
            self.fail(f"{text!r} is none of table, json, jsonl, or a template such as '{{{{.Id}}}}'", param, ctx)
        from layerfs_cli.template import Template

        aligned = re.match(r"table(?=\s|\{\{)", text) is not None
        template = Template(text.removeprefix("table").lstrip() if aligned else text, table=aligned)
        return Format("template", template, aligned)


def format_option(default: str = "table") -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Return the option ``--format``."""
    return click.option(
        "--format", "form", type=FormatType(), default=default, show_default=True,
        help="table, json, jsonl (one object per line), or a Go template such as '{{.ID}}'.",
    )  # fmt: skip


def write(data: str | bytes) -> None:
    """Write to standard output; text goes out as UTF-8, with the bytes behind surrogates as they were."""
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")
    with _naming_stdout():
        if sys.stdout is None:  # closed by the caller
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # Under PYTHONUNBUFFERED this is the bare file, which may take less than all.
        rest = memoryview(raw)
        while rest:
            rest = rest[sys.stdout.buffer.write(rest) :]


def flush() -> None:
    """Write what is still in the buffer, while an error can be reported."""
    with _naming_stdout():
        if sys.stdout is not None:
            sys.stdout.flush()


class _Output:
    """Standard output for bulk data: nothing of it is copied into a buffer."""

    def write(self, data: bytes) -> int:
        write(data)
        return len(data)

    def flush(self) -> None:
        flush()


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Return standard output as a stream to write an archive to."""
    yield cast("BinaryIO", _Output())


def write_to(target: str, pieces: Iterable[bytes], *, sync: bool) -> None:
    """Write a tar to standard output (``-``), or to a file that appears when it is complete."""
    from layerfs.registry.target import open_target

    with standard_output() if target == "-" else nullcontext(target) as place, open_target(place, sync=sync) as file:
        for piece in pieces:
            file.write(piece)


@contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STDOUT
        raise


def as_json(value: object, *, indent: int | None = None, compact: bool = False) -> str:
    """Return a value as JSON, safe for terminals and any encoding; ``compact`` is without blanks, as Go writes it."""
    separators = (",", ":") if compact else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=_plain, separators=separators)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_document(document: object) -> None:
    """Print one JSON document."""
    write(as_json(document, indent=4) + "\n")


def print_listing(
    form: Format,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, object]],
    documents: Iterable[object] | None = None,
    *,
    heading: bool = True,
) -> None:
    """Print a list.

    Args:
        form: how.
        columns: for a table.
        rows: for tables and templates; cells are shown as they are.
        documents: for JSON; the rows, if None.
        heading: whether a table has heads.
    """
    if form.kind == "json":
        print_document(list(rows if documents is None else documents))
    elif form.kind == "jsonl":
        for document in rows if documents is None else documents:
            write(as_json(document) + "\n")
    elif form.template is not None:
        _print_template(form, columns, rows, heading=heading)
    else:
        cells = [[_cell(row[column.field]) for column in columns] for row in rows]
        right = [column.right for column in columns]
        _print_table([[column.head for column in columns]] if heading else [], cells, right)


def _print_template(
    form: Format, columns: Sequence[Column], rows: Sequence[Mapping[str, object]], *, heading: bool
) -> None:
    template = form.template
    assert template is not None, "whoever prints one has one"
    texts = [template.render(list(rows))] if template.of_list else [template.render(row) for row in rows]
    if form.aligned:
        heads = _cells(template.heads({column.field: column.head for column in columns})) if heading else []
        _print_table(heads, [line for text in texts for line in _cells(text)])
    else:
        write("".join(texts) if template.of_list else "".join(f"{text}\n" for text in texts))


def _cells(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def _print_table(heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> None:
    lines = [*heads, *([printable(cell) for cell in row] for row in rows)]
    count = max((len(line) for line in lines), default=0)
    widths = [max(len(line[index]) for line in lines if index < len(line)) for index in range(count)]
    for line in lines:
        cells = [
            cell.rjust(width) if index < len(right) and right[index] else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        write(_GUTTER.join(cells).rstrip() + "\n")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _plain(value: object) -> object:
    """Return what JSON can hold for bytes, mappings and sequences that are none of its own, and digests."""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | Iterable):
        return list(value)
    return str(value)
