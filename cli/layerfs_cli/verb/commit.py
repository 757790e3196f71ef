"""``layerfs commit``: an image of a container."""

from __future__ import annotations

import click

from layerfs_cli.argument import (
    change_options,
    complete_containers,
    compression_option,
    epoch_option,
    force_name_option,
)
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("commit", short_help="Make an image of a container.")
@click.argument("container", metavar="CONTAINER", shell_complete=complete_containers)
@click.argument("name", metavar="[NAME]", required=False)
@change_options
@click.option("--squash", is_flag=True, help="Make one layer of all, those of the image included.")
@compression_option
@force_name_option
@epoch_option
@click.pass_context
def command(
    context: click.Context,
    container: str,
    name: str | None,
    message: str,
    author: str | None,
    changes: tuple[str, ...],
    compression: str,
    latest: int | None,
    *,
    squash: bool,
    force: bool,
) -> None:
    """Make an image of a container: the layers of its image, and one with what was changed. Prints the image ID.

    The container may be mounted; one that is being written to all the time is refused. The same change gives the same
    image, whenever it is made: its time is that of the newest change. Sockets stay out, since no layer can hold one.
    """
    with settings_of(context).open_store() as store:
        image = store.commit(
            container, name, message=message, author=author, changes=changes, squash=squash, compression=compression,
            latest=latest, force=force,
        )  # fmt: skip
    write(f"{image.id}\n")
