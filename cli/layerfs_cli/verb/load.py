"""``layerfs load``: images in, from a file, a directory or a pipe."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from layerfs_cli.argument import keep_blobs_option, platform_options, selected_platform
from layerfs_cli.output import as_json, write
from layerfs_cli.program import verb
from layerfs_cli.progress import show_progress
from layerfs_cli.registry_option import policy_file, policy_options
from layerfs_cli.settings import settings_of

if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.api import Image

__all__ = ["command", "print_loaded"]


@verb("load", short_help="Load images from an archive, a layout or standard input.")
@click.option(
    "-i", "--input", "source", metavar="PATH", type=click.Path(allow_dash=True), default="-",
    help="Archive, or directory of an OCI layout.  [default: standard input]",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No progress; print image IDs alone.")
@keep_blobs_option
@platform_options
@policy_options
@click.pass_context
def command(
    context: click.Context,
    source: str,
    platform: str | None,
    policy: str | None,
    *,
    quiet: bool,
    all_platforms: bool,
    keep_blobs: bool,
    insecure_policy: bool,
) -> None:
    """Load images from an archive of docker or podman, an OCI archive, or an OCI layout.

    The kind of input is found by looking, compressed archives included. Standard input is read in one pass and may be
    a pipe: docker save debian | layerfs load

    Prints a line "Loaded image: NAME" per name that it gives and the full image ID on a line of its own, which is the
    last one. An image is there once it is complete and safe on disk; a load that fails leaves nothing behind.
    """
    chosen = selected_platform(context, platform, all_platforms=all_platforms)
    if source == "-" and (sys.stdin is None or os.isatty(sys.stdin.fileno())):
        what = "closed" if sys.stdin is None else "a terminal"
        raise click.UsageError(f"standard input is {what}: redirect an archive into it, or name one with -i", context)
    from layerfs.registry.access import Access

    settings = settings_of(context)
    trusted = Access(policy=policy_file(policy, insecure=insecure_policy)).read_policy()
    with ExitStack() as stack:
        stream: BinaryIO | str = source
        if source == "-":
            from layerfs_cli.standard_input import standard_input

            stream = stack.enter_context(standard_input())
        store = stack.enter_context(settings.open_store())
        progress = stack.enter_context(show_progress(settings, quiet=quiet))
        images = store.load(
            stream, platform=chosen, all_platforms=all_platforms, policy=trusted, keep_blobs=keep_blobs,
            progress=progress,
        )  # fmt: skip
    print_loaded(images, quiet=quiet)


def print_loaded(images: list[Image], *, quiet: bool, events: bool = False) -> None:
    """Print IDs of images that came in and the names that this gave them; ``events`` as one object each."""
    for image in images:
        if events:
            write(as_json({"Id": str(image.id), "RepoTags": list(image.given)}) + "\n")
            continue
        if not quiet:
            for name in image.given:
                write(f"Loaded image: {name}\n")
        write(f"{image.id}\n")
