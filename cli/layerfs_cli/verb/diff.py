"""``layerfs diff``: what was changed, in a container, between images, by a layer."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from layerfs_cli.argument import complete_containers_and_images, epoch_option
from layerfs_cli.output import as_json, print_document, refuse_terminal, stdout_is_terminal, write, write_to
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size, rfc3339, shown_name

if TYPE_CHECKING:
    from layerfs.api import Store
    from layerfs.changeset.change import Step

__all__ = ["command"]

_WORDS: Final = {"C": "changed", "A": "added", "D": "deleted"}


@verb("diff", short_help="Show what was changed in a container, or between images.")
@click.argument("names", metavar="[CONTAINER|IMAGE] [IMAGE]", nargs=-1, shell_complete=complete_containers_and_images)
@click.option("--layer", metavar="DIGEST", help="Show what one layer does by itself.")
@click.option("--name-only", is_flag=True, help="Print paths without the letter.")
@click.option("-z", "--null", is_flag=True, help="End lines with NUL, for names that contain newlines.")
@click.option(
    "--stat",
    "stat_",
    is_flag=True,
    help="Count changes and bytes per directory; one that changed only in what it holds, or its time, counts nowhere.",
)
@click.option(
    "--metadata",
    is_flag=True,
    help="Also say what changed: mode, owner, time, size, xattrs.",
)
@click.option(
    "--content",
    is_flag=True,
    help="Show changed text files and symlinks as a unified diff, also those that went with a directory; name binary"
    " files, and those of more than 1 MiB.",
)
@click.option(
    "--format", "form", type=click.Choice(("lines", "json", "jsonl")), default="lines", show_default=True,
    help="json is one object with the arrays changed, added and deleted; jsonl an object with kind and path per line.",
)  # fmt: skip
@click.option("-o", "--output", metavar="FILE", type=click.Path(allow_dash=True),
              help="Write the change as an OCI layer tar, - for standard output.")  # fmt: skip
@click.option("--exit-code", is_flag=True, help="Exit with 1 if there is any change.")
@epoch_option
@click.pass_context
def command(
    context: click.Context,
    names: tuple[str, ...],
    layer: str | None,
    form: str,
    output: str | None,
    latest: int | None,
    *,
    name_only: bool,
    null: bool,
    stat_: bool,
    metadata: bool,
    content: bool,
    exit_code: bool,
) -> None:
    """Show what was changed: a letter, a space and the absolute path per line.

    \b
      layerfs diff CONTAINER        since its image
      layerfs diff IMAGE IMAGE      from the first image to the second
      layerfs diff CONTAINER IMAGE  from the image to what the container is now
      layerfs diff --layer DIGEST   what a layer has (A) and hides (D); directories that
                                    show nothing of lower layers (C)

    A was added, C changed (or something below it was), D deleted. Sorted; a directory comes before what is in it.
    Mounted or not, of a container only the writable layer is read, and of images what only one of them has.
    """  # noqa: D301 - \b tells click not to wrap
    modes = [stat_, metadata, content, output is not None]
    if sum(modes) > 1:
        raise click.UsageError("--stat, --metadata, --content and -o exclude each other", context)
    if (name_only or null) and (form != "lines" or any(modes)):
        raise click.UsageError("--name-only and -z are for lines", context)
    if content and form != "lines":
        raise click.UsageError("--content has no JSON form", context)
    if (layer is None) == (not names) or len(names) > 2:
        raise click.UsageError("name a container, two images, or a --layer", context)
    if output == "-":
        refuse_terminal(context)
    settings = settings_of(context)
    with settings.open_store() as store:
        steps = _Counted(_steps(store, names, layer, exact=output is not None))
        if output is not None:
            from layerfs.changeset.layer_tar import write_layer

            write_to(output, write_layer(steps, latest=latest), sync=settings.sync)
        elif stat_:
            _print_stat(steps, form)
        elif metadata:
            _print_metadata(steps, form)
        elif content:
            _print_content(steps)
        else:
            _print_changes(steps, form, name_only=name_only, null=null)
    if exit_code and steps.count:
        context.exit(1)


class _Counted:
    """Counts steps on their way."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps
        self.count = 0

    def __iter__(self) -> Iterator[Step]:
        for step in self._steps:
            self.count += 1
            yield step


def _steps(store: Store, names: tuple[str, ...], layer: str | None, *, exact: bool) -> Iterator[Step]:
    from layerfs.errors import NotFound

    if layer is not None:
        return store.layer_steps(store.find_layer(layer), exact=exact)
    if len(names) == 1:
        return store.steps(None, names[0], exact=exact)
    first, second = names
    try:
        store.container(first)
    except NotFound:
        return store.steps(first, second, exact=exact)
    return store.steps(second, first, exact=exact)


def _print_changes(steps: _Counted, form: str, *, name_only: bool, null: bool) -> None:
    terminal = stdout_is_terminal() and not null
    end = b"\0" if null else b"\n"
    found: dict[str, list[str]] = {"changed": [], "added": [], "deleted": []}
    for step in steps:
        assert step.kind is not None
        if form == "json":
            found[_WORDS[step.kind]].append(os.fsdecode(step.shown_path))
        elif form == "jsonl":
            write(as_json({"kind": step.kind, "path": os.fsdecode(step.shown_path)}) + "\n")
        else:
            name = shown_name(step.shown_path, terminal=terminal)
            write((name if name_only else step.kind.encode() + b" " + name) + end)
    if form == "json":
        print_document(found)


def _print_stat(steps: _Counted, form: str) -> None:
    from layerfs.changeset.describe import summarize, total

    rows = summarize(iter(steps))
    documents = [
        {
            "path": os.fsdecode(row.path), "added": row.added, "changed": row.changed, "deleted": row.deleted,
            "bytes_in": row.bytes_in, "bytes_out": row.bytes_out,
        }
        for row in rows
    ]  # fmt: skip
    if form == "json":
        print_document(documents)
        return
    if form == "jsonl":
        for document in documents:
            write(as_json(document) + "\n")
        return
    terminal = stdout_is_terminal()
    for row in rows:
        write(_stat_line(row.added, row.changed, row.deleted, row.bytes_in, row.bytes_out).encode())
        write(b"  " + shown_name(row.path, terminal=terminal) + b"\n")
    everything = total(rows)
    write(
        f"{everything.added} added, {everything.changed} changed, {everything.deleted} deleted in {len(rows)}"
        f" directories, {human_size(everything.bytes_in)} in, {human_size(everything.bytes_out)} out\n"
    )


def _stat_line(added: int, changed: int, deleted: int, bytes_in: int, bytes_out: int) -> str:
    sizes = f"{'+' + human_size(bytes_in):>8} {'-' + human_size(bytes_out):>8}"
    return f"{added:>6} A {changed:>6} C {deleted:>6} D {sizes}"


def _print_metadata(steps: _Counted, form: str) -> None:
    from layerfs.changeset.describe import metadata_changes

    terminal = stdout_is_terminal()
    documents: list[dict[str, Any]] = []
    for step in steps:
        assert step.kind is not None
        rows = metadata_changes(step) if step.kind == "C" else []
        if form == "lines":
            write(step.kind.encode() + b" " + shown_name(step.shown_path, terminal=terminal) + b"\n")
            for what, before, after in rows:
                line = f"    {what}: {_shown(what, before)} -> {_shown(what, after)}\n"
                write(shown_name(os.fsencode(line.rstrip("\n")), terminal=terminal) + b"\n")
            continue
        changes = {what: [_plain(what, before), _plain(what, after)] for what, before, after in rows}
        document = {"kind": step.kind, "path": os.fsdecode(step.shown_path), "changes": changes}
        if form == "jsonl":
            write(as_json(document) + "\n")
        else:
            documents.append(document)
    if form == "json":
        print_document(documents)


def _shown(what: str, value: object) -> str:
    plain = _plain(what, value)
    return "none" if plain is None else str(plain)


def _plain(what: str, value: Any) -> object:
    if what == "mtime" and value is not None:
        return rfc3339(value[0] * 10**9 + value[1])
    if isinstance(value, bytes):
        return os.fsdecode(value) if what == "target" else base64.b64encode(value).decode("ascii")
    return value


def _print_content(steps: _Counted) -> None:
    from layerfs.changeset.describe import text_diff

    terminal = stdout_is_terminal()
    for step in steps:
        for line in text_diff(step):
            write(shown_name(line.removesuffix(b"\n"), terminal=terminal) + b"\n")
