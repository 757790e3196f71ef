"""``layerfs rmi``: images out."""

from __future__ import annotations

import click

from layerfs_cli.argument import images_argument
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.several import each

__all__ = ["command"]


@verb("rmi", short_help="Remove images, or names of images.")
@images_argument()
@click.option(
    "-f", "--force", is_flag=True, help="By ID, remove an image that has several names; no error if none is there."
)
@click.pass_context
def command(context: click.Context, names: tuple[str, ...], *, force: bool) -> None:
    """Remove a name of an image, and the image with its last name; an ID removes the image.

    What other images share stays. Prints "Untagged: NAME" and "Deleted: ID" for what is gone. With several images,
    those that cannot be removed are reported, the others are removed.
    """
    from layerfs.errors import NotFound

    with settings_of(context).open_store() as store:
        for name in each(context, names, ignored=NotFound if force else None):
            with name as text:
                removed = store.remove_image(text, force=force)
                write("".join(f"Untagged: {untagged}\n" for untagged in removed.untagged))
                write("".join(f"Deleted: {digest}\n" for digest in removed.deleted))
