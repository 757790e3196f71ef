"""``layerfs copy``: an image from one place to another."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from layerfs_cli.argument import is_given, recompression_options
from layerfs_cli.digest_file import digestfile_option, write_digest
from layerfs_cli.output import as_json, write
from layerfs_cli.program import verb
from layerfs_cli.progress import events_option, show_progress
from layerfs_cli.registry_option import access_of, narrowed, transfer_options
from layerfs_cli.settings import settings_of

__all__ = ["command"]


@verb("copy", short_help="Copy an image between registries, archives, directories and the store.")
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION")
@click.option(
    "--platform", metavar="OS[/ARCH[/VARIANT]]", envvar="DOCKER_DEFAULT_PLATFORM", show_envvar=True,
    help="Which image of an index.  [default: this machine's]",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="The whole index, with its images for all platforms.")
@recompression_options("as they are")
@digestfile_option
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--src-creds", metavar="USER[:PASSWORD]", help="Credentials for the source alone.")
@click.option("--dest-creds", metavar="USER[:PASSWORD]", help="Credentials for the destination alone.")
@click.option("--src-tls-verify/--no-src-tls-verify", default=None, help="As --tls-verify, for the source alone.")
@click.option("--dest-tls-verify/--no-dest-tls-verify", default=None, help="As --tls-verify, for the destination.")
@events_option
@transfer_options
@click.pass_context
def command(
    context: click.Context,
    /,
    source: str,
    destination: str,
    platform: str | None,
    compression: Any,
    level: int | None,
    digestfile: str | None,
    src_creds: str | None,
    dest_creds: str | None,
    *,
    src_tls_verify: bool | None,
    dest_tls_verify: bool | None,
    everything: bool,
    quiet: bool,
    events: bool,
    **options: Any,
) -> None:
    """Copy an image. SOURCE and DESTINATION are each one of

    \b
      docker://REGISTRY/REPOSITORY[:TAG]     an image on a registry
      oci:DIRECTORY[:NAME]                   an OCI layout
      oci-archive:FILE[:NAME]                an OCI layout in a tar archive
      docker-archive:FILE[:REFERENCE]        what docker save writes
      dir:DIRECTORY                          plain files, as skopeo lays them down
      store:IMAGE                            an image in the store

    Between registries, layouts, directories and OCI archives all stays as it is, byte for byte, but for the manifests
    of docker images that go into a layout or OCI archive: they become such of OCI. With --compression layers that are
    not compressed like that are made anew, which changes the digest and leaves the image ID. Prints the digest of the
    copy.
    """  # noqa: D301, D415 - \b tells click not to wrap; the first line goes on below
    from dataclasses import replace

    from layerfs.api.copying import copy
    from layerfs.formats.platform import Platform

    if everything and is_given(context, "platform"):
        raise click.UsageError("--platform and --all exclude each other", context)
    settings = settings_of(context)
    access = access_of(options)
    from_there = narrowed(access, "src", source, src_creds, verify_tls=src_tls_verify)
    # Secrets for the source, and common ones where it is a registry too, never reach the destination.
    common = access
    if source.startswith("docker://") and _registry(source) != _registry(destination):
        common = replace(access, credential=None, token=None)
    to_there = narrowed(common, "dest", destination, dest_creds, verify_tls=dest_tls_verify)
    if from_there is not None and to_there is None:
        to_there = common
    with ExitStack() as stack:
        wanted = any(text.startswith("store:") for text in (source, destination))
        store = stack.enter_context(settings.open_store()) if wanted else None
        progress = stack.enter_context(show_progress(settings, quiet=quiet, events=events))
        digest = copy(
            source, destination, store=store, platform=Platform.parse(platform) if platform else None,
            everything=everything, compression=compression, level=level, access=from_there or access,
            destination_access=to_there, progress=progress,
        )  # fmt: skip
    write_digest(digestfile, digest)
    write(as_json({"Digest": str(digest)}) + "\n" if events else f"{digest}\n")


def _registry(place: str) -> str | None:
    """Return the registry that a place is on, or None."""
    from layerfs.formats.reference import Reference
    from layerfs.formats.transport import registry_name

    return Reference.parse(registry_name(place)).domain if place.startswith("docker://") else None
