"""``layerfs tag``: further names for an image."""

from __future__ import annotations

import click

from layerfs_cli.argument import image_argument
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("tag", short_help="Give an image further names.")
@image_argument()
@click.argument("names", metavar="NAME[:TAG]...", nargs=-1, required=True)
@click.pass_context
def command(context: click.Context, image: str, names: tuple[str, ...]) -> None:
    """Let names mean an image, whatever they meant before. Prints nothing."""
    from layerfs.formats.reference import Reference

    for name in names:
        Reference.parse(name)  # all of them are right before the first one counts
    with settings_of(context).open_store() as store:
        found = store.resolve(image)
        for name in names:
            store.tag(found, name)
