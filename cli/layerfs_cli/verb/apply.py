"""``layerfs apply``: a layer into a container."""

from __future__ import annotations

from contextlib import ExitStack

import click

from layerfs_cli.argument import complete_containers
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.tar_source import tar_pieces

__all__ = ["command"]


@verb("apply", short_help="Change a container as a layer says.")
@click.argument("container", metavar="CONTAINER", shell_complete=complete_containers)
@click.argument("layer", metavar="LAYER.tar|-", type=click.Path(allow_dash=True))
@click.pass_context
def command(context: click.Context, container: str, layer: str) -> None:
    """Change a container as an OCI layer says, possibly a compressed one: what diff -o writes, or another tool.

    The container must not be mounted. A layer that is damaged, or leaves its root, is refused before anything is done.
    """
    with ExitStack() as stack:
        pieces = tar_pieces(context, layer, stack)
        store = stack.enter_context(settings_of(context).open_store())
        store.apply(container, pieces)
