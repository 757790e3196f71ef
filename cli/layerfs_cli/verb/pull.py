"""``layerfs pull``: images in, from registries or through another transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from layerfs_cli.argument import keep_blobs_option, platform_options, selected_platform
from layerfs_cli.program import verb
from layerfs_cli.progress import events_option, show_progress
from layerfs_cli.registry_option import access_of, transfer_options
from layerfs_cli.settings import settings_of
from layerfs_cli.several import each
from layerfs_cli.verb.load import print_loaded

if TYPE_CHECKING:
    from layerfs.registry.access import Access

__all__ = ["command"]


@verb("pull", short_help="Pull images from a registry, or through another transport.")
@click.argument("sources", metavar="NAME...", nargs=-1, required=True)
@click.option("-a", "--all-tags", is_flag=True, help="Pull all tags of the repository.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; print image IDs alone.")
@events_option
@keep_blobs_option
@platform_options
@transfer_options
@click.pass_context
def command(
    context: click.Context,
    /,
    sources: tuple[str, ...],
    platform: str | None,
    *,
    quiet: bool,
    events: bool,
    all_tags: bool,
    all_platforms: bool,
    keep_blobs: bool,
    **options: Any,
) -> None:
    """Pull images from registries. NAME is what docker and podman call it: debian:12, or

    \b
      REGISTRY/REPOSITORY[:TAG][@DIGEST]        docker:// may stand before it
      docker-archive:FILE[:REFERENCE|:@INDEX]   what docker save writes
      oci-archive:FILE[:NAME|:@INDEX]           an OCI layout in a tar archive
      oci:DIRECTORY[:NAME|:@INDEX]              an OCI layout
      dir:DIRECTORY                             plain files, as skopeo lays them down

    Layers that the store has are not fetched. What a pull that was interrupted or killed has received is kept: the next
    one goes on where it stopped. Prints what load prints: the last line is the full image ID. With --format jsonl every
    line is an object: {"id", "status"} as it goes on, with {"current", "total"} where bytes move; at the end {"Id",
    "RepoTags"} for each image.
    """  # noqa: D301, D415 - \b tells click not to wrap; the first line goes on below
    chosen = selected_platform(context, platform, all_platforms=all_platforms)
    access = access_of(options)
    settings = settings_of(context)
    if all_tags:
        sources = tuple(name for source in sources for name in _tags(source, access))
    with settings.open_store() as store:
        for attempt in each(context, sources):
            with attempt as source, show_progress(settings, quiet=quiet, events=events) as progress:
                images = store.pull(
                    source, platform=chosen, all_platforms=all_platforms, keep_blobs=keep_blobs, access=access,
                    progress=progress,
                )  # fmt: skip
            if attempt.code == 0:
                print_loaded(images, quiet=quiet, events=events)


def _tags(source: str, access: Access) -> list[str]:
    from layerfs.registry.query import list_tags

    name = source.removeprefix("docker://")
    return [f"{name}:{tag}" for tag in list_tags(access, name)]
