"""``layerfs save``: images out, into an archive, a layout or a pipe."""

from __future__ import annotations

from contextlib import nullcontext

import click

from layerfs_cli.argument import images_argument, recompression_options
from layerfs_cli.output import refuse_terminal, standard_output
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("save", short_help="Write images into an archive that other tools load.")
@images_argument()
@click.option("-o", "--output", metavar="PATH", type=click.Path(allow_dash=True), default="-",
              help="Archive, or directory of an OCI layout.  [default: standard output]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(("docker-archive", "oci-archive", "oci")),
              default="docker-archive", show_default=True, help="oci is a layout in a directory.")  # fmt: skip
@recompression_options("as they were kept, else none; a docker archive has none")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what was written.")
@click.pass_context
def command(
    context: click.Context,
    names: tuple[str, ...],
    output: str,
    form: str,
    compression: str | None,
    level: int | None,
    *,
    quiet: bool,
) -> None:
    """Write images into one archive for docker load, podman, skopeo, containerd, umoci, or layerfs load.

    An image named by its name has that name in the archive; one named by its ID has none.

    Layers leave as they came: the image IDs stay, and after load --keep-blobs the manifest digests of OCI forms, too.
    A pipe is written in one pass: layerfs save debian | ssh host docker load. A file appears when it is complete.
    """
    if form == "docker-archive" and compression not in (None, "none"):
        raise click.UsageError("layers of a docker archive are not compressed: use --format oci-archive", context)
    if output == "-" and form == "oci":
        raise click.UsageError("an OCI layout is a directory: name it with -o", context)
    if output == "-":
        refuse_terminal(context)
    settings = settings_of(context)
    with settings.open_store() as store, standard_output() if output == "-" else nullcontext(output) as target:
        saved = store.save(names, target, form=form, compression=compression, level=level)
    if not quiet:
        for image in saved:
            settings.log("info", f"saved {', '.join(image.names) or image.id} as {image.manifest}")
