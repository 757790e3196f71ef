"""``layerfs rebase``: another base below an image's own layers."""

from __future__ import annotations

import click

from layerfs_cli.argument import complete_images, force_name_option, image_argument
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("rebase", short_help="Put an image's own layers on another base.")
@image_argument()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--onto", metavar="BASE", required=True, shell_complete=complete_images, help="The new base.")
@click.option("--from", "base", metavar="BASE", shell_complete=complete_images,
              help="The old base.  [default: the image here that has most of the lowest layers]")  # fmt: skip
@force_name_option
@click.pass_context
def command(
    context: click.Context, image: str, name: str | None, onto: str, base: str | None, *, force: bool
) -> None:  # fmt: skip
    """Make an image that has the layers of another base in place of those of its own. Prints the image ID.

    Nothing is run again: what fits on the old base has to fit on the new one. Settings stay those of the image.
    """
    with settings_of(context).open_store() as store:
        made = store.rebase(image, onto, name, base=base, force=force)
    write(f"{made.id}\n")
