"""``layerfs which``: where a path of an image comes from."""

from __future__ import annotations

import os
import stat
from typing import Final

import click

from layerfs_cli.argument import image_argument, no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, format_option, print_listing
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size, shorten

__all__ = ["command"]

_COLUMNS: Final = (
    Column("#", "Position", right=True),
    Column("LAYER", "ID"),
    Column("ROLE", "Role"),
    Column("MODE", "Mode"),
    Column("SIZE", "Size"),
    Column("CREATED BY", "CreatedBy"),
)
_COMMAND_WIDTH: Final = 60


@verb("which", short_help="Show which layers provide or hide a path.")
@image_argument()
@click.argument("path", metavar="PATH")
@no_trunc_option
@noheading_option
@format_option()
@click.pass_context
def command(context: click.Context, image: str, path: str, form: Format, *, no_trunc: bool, noheading: bool) -> None:
    """Show what each layer of an image does to a path, the topmost first.

    \b
    ROLE is one of
      provides   the path is seen as this layer has it
      hidden     the layer has it, but one above covers it
      deletes    the layer removes it, or a directory above it
      opaque     the layer hides all that lower layers have there
      replaces   the layer has something else in place of a directory above it

    CREATED BY is the line of the history. Fields of templates: .Position .ID .Role .Mode .Size .CreatedBy
    """  # noqa: D301 - \b tells click not to wrap
    from layerfs.errors import NotFound

    raw = os.fsencode(path)
    with settings_of(context).open_store() as store:
        found = store.which(image, raw)
        steps = store.config(image).layer_history()
    if not found:
        raise NotFound("path in any layer", f"{image}:{path}")
    rows = []
    documents = []
    for item in found:
        step = steps[item.position]
        created_by = step.created_by if step is not None else ""
        is_file = item.mode is not None and not stat.S_ISDIR(item.mode)
        rows.append(
            {
                "Position": item.position,
                "ID": str(item.diff_id) if no_trunc else item.diff_id.short,
                "Role": item.role,
                "Mode": stat.filemode(item.mode) if item.mode is not None else "",
                "Size": human_size(item.size) if is_file else "",
                "CreatedBy": created_by if no_trunc else shorten(" ".join(created_by.split()), _COMMAND_WIDTH),
            }
        )
        documents.append(
            {
                "position": item.position,
                "diff_id": str(item.diff_id),
                "role": item.role,
                "mode": None if item.mode is None else f"{item.mode:o}",
                "size": item.size if is_file else None,
                "created_by": created_by,
            }
        )
    print_listing(form, _COLUMNS, rows, documents, heading=not noheading)
