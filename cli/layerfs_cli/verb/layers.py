"""``layerfs layers``: what an image is stacked of."""

from __future__ import annotations

from typing import Final

import click

from layerfs_cli.argument import image_argument, no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, format_option, print_listing, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size, shorten

__all__ = ["command"]

_COLUMNS: Final = (
    Column("#", "Position", right=True),
    Column("LAYER", "ID"),
    Column("SIZE", "Size"),
    Column("SHARED", "Shared"),
    Column("ENTRIES", "Entries", right=True),
    Column("IMAGES", "Images", right=True),
    Column("CREATED BY", "CreatedBy"),
)
_COMMAND_WIDTH: Final = 45


@verb("layers", short_help="List the layers of an image.")
@image_argument()
@click.option("-q", "--quiet", is_flag=True, help="Print IDs of layers alone.")
@no_trunc_option
@noheading_option
@format_option()
@click.pass_context
def command(context: click.Context, image: str, form: Format, *, quiet: bool, no_trunc: bool, noheading: bool) -> None:
    """List the layers of an image, the lowest first.

    LAYER is the diff ID: the digest of the uncompressed layer. SHARED is how much of SIZE lies in files that other
    layers have too, and is stored there; IMAGES, how many images have the layer. Fields of templates: .Position .ID
    .Size .Shared .Entries .Images .CreatedBy
    """
    with settings_of(context).open_store() as store:
        found = store.layers(image)
    if quiet:
        write("".join(f"{layer.diff_id if no_trunc else layer.diff_id.short}\n" for layer in found))
        return
    rows = []
    documents = []
    for position, layer in enumerate(found):
        command_line = layer.command or ""
        rows.append(
            {
                "Position": position,
                "ID": str(layer.diff_id) if no_trunc else layer.diff_id.short,
                "Size": human_size(layer.size),
                "Shared": human_size(layer.shared_size),
                "Entries": layer.entries,
                "Images": layer.images,
                "CreatedBy": command_line if no_trunc else shorten(" ".join(command_line.split()), _COMMAND_WIDTH),
            }
        )
        documents.append(
            {
                "position": position,
                "diff_id": str(layer.diff_id),
                "size": layer.size,
                "shared_size": layer.shared_size,
                "entries": layer.entries,
                "images": layer.images,
                "created_by": layer.command,
            }
        )
    print_listing(form, _COLUMNS, rows, documents, heading=not noheading)
