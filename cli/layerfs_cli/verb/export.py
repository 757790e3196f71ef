"""``layerfs export``: all files of a container or an image as one tar."""

from __future__ import annotations

import click

from layerfs_cli.argument import complete_containers_and_images, epoch_option
from layerfs_cli.output import refuse_terminal, write_to
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("export", short_help="Write all files of a container or an image as a tar.")
@click.argument("name", metavar="CONTAINER|IMAGE", shell_complete=complete_containers_and_images)
@click.option("-o", "--output", metavar="FILE", type=click.Path(allow_dash=True), default="-",
              help="The tar.  [default: standard output]")  # fmt: skip
@epoch_option
@click.pass_context
def command(context: click.Context, name: str, output: str, latest: int | None) -> None:
    """Write all that a container or an image shows as one plain tar, with owners, xattrs and times to the nanosecond.

    The same files give the same bytes. layerfs import takes it back. Sockets stay out, since no tar can hold one.
    """
    if output == "-":
        refuse_terminal(context)
    settings = settings_of(context)
    with settings.open_store() as store:
        write_to(output, store.export(name, latest=latest), sync=settings.sync)
