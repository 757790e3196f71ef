"""``layerfs squash``: fewer layers."""

from __future__ import annotations

import click

from layerfs_cli.argument import compression_option, epoch_option, force_name_option, image_argument
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("squash", short_help="Make one layer of an image's layers.")
@image_argument()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--from", "first", metavar="N", type=click.IntRange(min=0), default=0,
              help="Keep the layers below N, counted from 0 as layerfs layers does.")  # fmt: skip
@click.option("-m", "--message", default="", help="Comment of the step in the image's history.")
@compression_option
@force_name_option
@epoch_option
@click.pass_context
def command(
    context: click.Context,
    image: str,
    name: str | None,
    first: int,
    message: str,
    compression: str,
    latest: int | None,
    *,
    force: bool,
) -> None:
    """Make an image with the same files and one layer, or one in place of the layers from N on. Prints the image ID.

    What upper layers hide is not in it. The old image stays; the files of both are stored once.
    """
    with settings_of(context).open_store() as store:
        made = store.squash(
            image, name, first=first, message=message, compression=compression, latest=latest, force=force
        )
    write(f"{made.id}\n")
