"""``layerfs explore``: an image in a terminal browser."""

from __future__ import annotations

import sys

import click

from layerfs_cli.argument import image_argument
from layerfs_cli.output import stdout_is_terminal
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("explore", short_help="Browse the layers and files of an image.")
@image_argument()
@click.pass_context
def command(context: click.Context, image: str) -> None:
    """Browse an image in the terminal: its layers with what each wastes, its files, and which layers have them.

    Directories and files come by size. Keys: arrows and enter, tab for the other side; w for the paths that waste most,
    l for the largest files, f for the files again; q to leave. Needs the extra "tui": pip install 'layerfs[tui]'
    """
    from layerfs.errors import LayerfsError

    if sys.stdin is None or not sys.stdin.isatty() or not stdout_is_terminal():
        raise click.UsageError("a browser needs a terminal: use layerfs report instead", context)
    try:
        from layerfs_cli.browser import Browser
    except ModuleNotFoundError as error:
        raise LayerfsError(
            f"the browser needs {error.name}, which is not installed",
            hint="Install it with: pip install 'layerfs[tui]'",
        ) from error
    with settings_of(context).open_store() as store:
        found = store.resolve(image)
        report = store.analyze(found)
        with store.tree(found) as tree:
            Browser(store, found, report, tree).run()
