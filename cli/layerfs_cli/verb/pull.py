"""``layerfs pull``: an image in, through a transport."""

from __future__ import annotations

import click

from layerfs_cli.argument import keep_blobs_option, platform_options, selected_platform
from layerfs_cli.program import verb
from layerfs_cli.progress import show_progress
from layerfs_cli.settings import settings_of
from layerfs_cli.verb.load import print_loaded

__all__ = ["command"]


@verb("pull", short_help="Load an image through a transport.")
@click.argument("source", metavar="TRANSPORT:PATH[:REFERENCE]")
@click.option("-q", "--quiet", is_flag=True, help="No progress; print image IDs alone.")
@keep_blobs_option
@platform_options
@click.pass_context
def command(
    context: click.Context,
    source: str,
    platform: str | None,
    *,
    quiet: bool,
    all_platforms: bool,
    keep_blobs: bool,
) -> None:
    """Load an image through a transport.

    \b
      docker-archive:FILE[:REFERENCE|:@INDEX]   what docker save writes
      oci-archive:FILE[:NAME|:@INDEX]           an OCI layout in a tar archive
      oci:DIRECTORY[:NAME|:@INDEX]              an OCI layout

    REFERENCE or NAME chooses one image of several, INDEX by its place, from 0. Prints what load prints: the last line
    is the full image ID.
    """  # noqa: D301 - \b tells click not to wrap
    chosen = selected_platform(context, platform, all_platforms=all_platforms)
    settings = settings_of(context)
    with settings.open_store() as store, show_progress(settings, quiet=quiet) as progress:
        images = store.pull(
            source, platform=chosen, all_platforms=all_platforms, keep_blobs=keep_blobs, progress=progress
        )
    print_loaded(images, quiet=quiet)
