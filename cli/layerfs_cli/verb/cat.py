"""``layerfs cat``: contents of an image's files."""

from __future__ import annotations

import os
from errno import EINVAL

import click

from layerfs_cli.argument import image_argument, split_image_path
from layerfs_cli.output import STDOUT, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("cat", short_help="Write files of an image to standard output.")
@image_argument("places", "IMAGE:/PATH...", nargs=-1, required=True)
@click.pass_context
def command(context: click.Context, places: tuple[str, ...]) -> None:
    """Write files of images to standard output, one after the other. Symlinks are followed inside the image."""
    pairs = []
    for place in places:
        image, path = split_image_path(place)
        if path is None:
            raise click.UsageError(f"{place!r} names no file: write IMAGE:/PATH", context)
        pairs.append((image, path))
    with settings_of(context).open_store() as store:
        for image, path in pairs:
            with store.tree(image) as tree:
                try:
                    for piece in tree.pieces(tree.resolve(path)):
                        write(piece)
                except OSError as error:
                    if error.filename != STDOUT:
                        error.filename = f"{image}:{os.fsdecode(path)}"
                        if error.errno == EINVAL:
                            error.strerror = "Not a regular file"
                    raise
