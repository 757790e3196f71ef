"""``layerfs diff``: what was changed in a container."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from layerfs_cli.argument import complete_containers
from layerfs_cli.output import as_json, print_document, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import shown_name

__all__ = ["command"]

_WORDS: Final = {"C": "changed", "A": "added", "D": "deleted"}


@verb("diff", short_help="Show what was changed in a container.")
@click.argument("container", metavar="CONTAINER", shell_complete=complete_containers)
@click.option("--name-only", is_flag=True, help="Print paths without the letter.")
@click.option("-z", "--null", is_flag=True, help="End lines with NUL, for names that contain newlines.")
@click.option(
    "--format", "form", type=click.Choice(("lines", "json", "jsonl")), default="lines", show_default=True,
    help="json is one object with the arrays changed, added and deleted; jsonl an object with kind and path per line.",
)  # fmt: skip
@click.pass_context
def command(context: click.Context, container: str, form: str, *, name_only: bool, null: bool) -> None:
    """Show what was changed in a container since its image: a letter, a space and the absolute path per line.

    A was added, C changed (or something below it was), D deleted. Sorted; a directory comes before what is in it.
    Mounted or not, only the writable layer is read.
    """
    if form != "lines" and (name_only or null):
        raise click.UsageError("--name-only and -z are for lines", context)
    terminal = sys.stdout.isatty() and not null
    end = b"\0" if null else b"\n"
    with settings_of(context).open_store() as store:
        changes = store.diff(container)
        if form == "json":
            found: dict[str, list[str]] = {"changed": [], "added": [], "deleted": []}
            for change in changes:
                found[_WORDS[change.kind]].append(os.fsdecode(change.path))
            print_document(found)
            return
        for change in changes:
            if form == "jsonl":
                write(as_json({"kind": change.kind, "path": os.fsdecode(change.path)}) + "\n")
                continue
            name = shown_name(change.path, terminal=terminal)
            write((name if name_only else change.kind.encode() + b" " + name) + end)
