"""``layerfs push``: an image out, to a registry."""

from __future__ import annotations

from typing import Any

import click

from layerfs_cli.argument import image_argument, recompression_options
from layerfs_cli.digest_file import digestfile_option, write_digest
from layerfs_cli.output import as_json, write
from layerfs_cli.program import verb
from layerfs_cli.progress import events_option, show_progress
from layerfs_cli.registry_option import access_of, sending_options
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("push", short_help="Push an image to a registry.")
@image_argument()
@click.argument("destination", metavar="[NAME]", required=False)
@recompression_options("as the image's manifest has them, gzip for what has to be compressed anew")
@digestfile_option
@click.option("-q", "--quiet", is_flag=True, help="No progress; print the digest alone.")
@events_option
@sending_options
@click.pass_context
def command(
    context: click.Context,
    /,
    image: str,
    destination: str | None,
    compression: Any,
    level: int | None,
    digestfile: str | None,
    *,
    quiet: bool,
    events: bool,
    **options: Any,
) -> None:
    """Push an image to a registry, under its own name or another one.

    The manifest is pushed as it came in, with the same digest, if the registry has its blobs or the store has their
    bytes: for uncompressed layers it always has, for compressed ones after a pull or load with --keep-blobs. Blobs that
    the registry has are not sent, and mounted from another repository there if possible.

    Prints the name and, on the last line, the digest of the manifest.
    """
    access = access_of(options)
    settings = settings_of(context)
    with settings.open_store() as store, show_progress(settings, quiet=quiet, events=events) as progress:
        pushed = store.push(
            image, destination, compression=compression, level=level, access=access, progress=progress
        )  # fmt: skip
    write_digest(digestfile, pushed.manifest_digest)
    if events:
        write(as_json({"Name": str(pushed.reference), "Digest": str(pushed.manifest_digest)}) + "\n")
    else:
        write(f"{'' if quiet else f'Pushed image: {pushed.reference}' + chr(10)}{pushed.manifest_digest}\n")
