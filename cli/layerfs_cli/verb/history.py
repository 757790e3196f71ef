"""``layerfs history``: the steps in which an image was made."""

from __future__ import annotations

from typing import Final

import click

from layerfs_cli.argument import image_argument, no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, format_option, print_listing, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_age, human_size, rfc3339, shorten

__all__ = ["command"]

_COLUMNS: Final = (
    Column("LAYER", "ID"),
    Column("CREATED", "CreatedSince"),
    Column("CREATED BY", "CreatedBy"),
    Column("SIZE", "Size"),
    Column("COMMENT", "Comment"),
)
#: Characters of a command in a table, as docker cuts it.
_COMMAND_WIDTH: Final = 45


@verb("history", short_help="Show the steps in which an image was made.")
@image_argument()
@click.option("-q", "--quiet", is_flag=True, help="Print IDs of layers alone.")
@no_trunc_option
@noheading_option
@format_option()
@click.pass_context
def command(context: click.Context, image: str, form: Format, *, quiet: bool, no_trunc: bool, noheading: bool) -> None:
    """Show the steps in which an image was made, last first.

    LAYER is the diff ID of the layer that a step made; a step that only changed settings has none. Fields of
    templates: .ID .CreatedAt .CreatedSince .CreatedBy .Size .Comment
    """
    with settings_of(context).open_store() as store:
        steps = store.history(image)
    if quiet:
        layers = [step.diff_id for step in steps if step.diff_id is not None]
        write("".join(f"{layer if no_trunc else layer.short}\n" for layer in layers))
        return
    rows = [
        {
            "ID": "<none>" if step.diff_id is None else str(step.diff_id) if no_trunc else step.diff_id.short,
            "CreatedAt": rfc3339(step.created) or "",
            "CreatedSince": human_age(step.created),
            "CreatedBy": step.created_by if no_trunc else shorten(" ".join(step.created_by.split()), _COMMAND_WIDTH),
            "Size": human_size(step.size),
            "Comment": step.comment,
        }
        for step in steps
    ]
    documents = [
        {
            "diff_id": None if step.diff_id is None else str(step.diff_id),
            "created": rfc3339(step.created),
            "created_by": step.created_by,
            "size": step.size,
            "comment": step.comment,
            "empty_layer": step.diff_id is None,
        }
        for step in steps
    ]
    print_listing(form, _COLUMNS, rows, documents, heading=not noheading)
