"""``layerfs import``: a plain tree as an image."""  # noqa: N999 - the verb is called so

from __future__ import annotations

import os
from contextlib import ExitStack

import click

from layerfs_cli.argument import change_options, compression_option, epoch_option, force_name_option
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.tar_source import tar_pieces

__all__ = ["command"]


@verb("import", short_help="Make an image of a plain file tree.")
@click.argument("source", metavar="TAR|DIRECTORY|-", type=click.Path(allow_dash=True))
@click.argument("name", metavar="[NAME]", required=False)
@change_options
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="What it is for.  [default: this machine]")
@compression_option
@force_name_option
@epoch_option
@click.pass_context
def command(
    context: click.Context,
    source: str,
    name: str | None,
    message: str,
    author: str | None,
    changes: tuple[str, ...],
    platform: str | None,
    compression: str,
    latest: int | None,
    *,
    force: bool,
) -> None:
    """Make an image of one layer: of a root file system in a tar, possibly compressed, or in a directory.

    A tar becomes the layer as it is, to the byte; one with names that are whiteouts in a layer is refused. Prints the
    image ID.
    """
    from layerfs.formats.platform import Platform

    chosen = Platform.parse(platform) if platform else None
    with ExitStack() as stack:
        tree = source if source != "-" and os.path.isdir(source) else tar_pieces(context, source, stack)
        store = stack.enter_context(settings_of(context).open_store())
        image = store.import_tree(
            tree, name, message=message, author=author, changes=changes, platform=chosen, compression=compression,
            latest=latest, force=force,
        )  # fmt: skip
    write(f"{image.id}\n")
