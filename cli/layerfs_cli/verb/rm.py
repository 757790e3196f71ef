"""``layerfs rm``: containers out."""

from __future__ import annotations

import click

from layerfs_cli.argument import complete_containers
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.several import each

__all__ = ["command"]


@verb("rm", short_help="Remove containers.")
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-f", "--force", is_flag=True, help="Unmount first; no error if there is none.")
@click.pass_context
def command(context: click.Context, names: tuple[str, ...], *, force: bool) -> None:
    """Remove containers and all that was written in them. Prints the names of those that are gone."""
    from layerfs.errors import NotFound

    with settings_of(context).open_store() as store:
        for name in each(context, names, ignored=NotFound if force else None):
            with name as text:
                write(f"{store.remove_container(text, force=force).name}\n")
