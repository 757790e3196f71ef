"""``layerfs extract``: files of an image into a directory."""

from __future__ import annotations

import os

import click

from layerfs_cli.argument import image_argument, split_image_path
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("extract", short_help="Write files of an image into a directory.")
@image_argument("place", "IMAGE[:/PATH]")
@click.argument("target", metavar="DIRECTORY", type=click.Path())
@click.pass_context
def command(context: click.Context, place: str, target: str) -> None:
    """Write the files of an image, or of one of its directories, into a new or empty directory.

    Any user can do this. Owners, devices and some xattrs only root can keep; what was left out is said.
    """
    image, path = split_image_path(place)
    settings = settings_of(context)
    with settings.open_store() as store:
        try:
            skipped = store.extract(image, target, path=path or b"/")
        except OSError as error:
            if error.filename == path:
                error.filename = f"{image}:{os.fsdecode(path or b'/')}"
            raise
    counts = {"devices": skipped.devices, "xattrs": skipped.xattrs, "set-ID bits": skipped.set_ids}
    lost = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if lost:
        named = ", ".join(os.fsdecode(each) for each in skipped.paths[:3])
        settings.log("warning", f"not kept: {lost}, such as of {named}")
    if skipped.owners:
        settings.log("info", f"{skipped.owners} entries belong to others in the image")
