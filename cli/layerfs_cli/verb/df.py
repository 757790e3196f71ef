"""``layerfs df``: what the store takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from layerfs_cli.argument import no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, format_option, print_document, print_listing, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size

if TYPE_CHECKING:
    from layerfs.api import Container, Image
    from layerfs.store.usage import Usage

__all__ = ["command"]

_COLUMNS: Final = (
    Column("TYPE", "Type"),
    Column("TOTAL", "Total"),
    Column("ACTIVE", "Active"),
    Column("SIZE", "Size"),
    Column("RECLAIMABLE", "Reclaimable"),
)
_IMAGES: Final = (
    Column("REPOSITORY", "Repository"),
    Column("TAG", "Tag"),
    Column("IMAGE ID", "ID"),
    Column("SIZE", "Size"),
    Column("SHARED SIZE", "SharedSize"),
    Column("UNIQUE SIZE", "UniqueSize"),
    Column("CONTAINERS", "Containers"),
)
_LAYERS: Final = (
    Column("LAYER", "ID"),
    Column("SIZE", "Size"),
    Column("ON DISK", "Disk"),
    Column("IN OTHER LAYERS", "Borrowed"),
    Column("IMAGES", "Images"),
)
_CONTAINERS: Final = (Column("CONTAINER ID", "ID"), Column("NAME", "Name"), Column("ON DISK", "Disk"))


@verb("df", short_help="Show how much the store takes and what sharing saves.")
@click.option("-v", "--verbose", is_flag=True, help="Per image, layer and container.")
@no_trunc_option
@noheading_option
@format_option()
@click.pass_context
def command(context: click.Context, form: Format, *, verbose: bool, no_trunc: bool, noheading: bool) -> None:
    """Show how much of the disk the store takes, what images share, and what file sharing saves.

    ACTIVE images have a container or are mounted, ACTIVE containers are mounted. RECLAIMABLE is at most what removing
    the others frees: bytes that layers still in use borrow stay. With -v, SIZE of an image or layer is uncompressed,
    ON DISK is what is allocated. JSON has sizes in bytes and all details. Fields of templates: .Type .Total .Active
    .Size .Reclaimable
    """
    with settings_of(context).open_store() as store:
        usage, images, containers = store.usage(), store.images(), store.containers()
        in_use = {mount.image_id for mount in store.mounts()} | {container.image_id for container in containers}
    needed = {diff_id for image in usage.images if image.id in in_use for diff_id in image.layers}
    document = _document(usage, images, containers)
    rows = _summary(usage, images, containers, len(in_use), free=sum(
        layer.disk for layer in usage.layers if layer.diff_id not in needed
    ))  # fmt: skip
    if form.kind == "json":
        print_document({**document, "summary": rows})
    elif form.kind == "jsonl":
        print_listing(form, _COLUMNS, rows)
    else:
        print_listing(form, _COLUMNS, [_readable(row) for row in rows], heading=not noheading)
        if form.kind == "table":
            write(
                f"\nTotal on disk: {human_size(usage.total)}\n"
                f"Shared between images: {human_size(usage.saved_by_layers)}, stored once\n"
                f"Saved by file sharing: {human_size(usage.saved_by_files)}\n"
                f"Trees of images: {human_size(usage.trees)}, one for each\n"
            )
            if usage.unpacked:
                write(f"Unpacked for mounts without EROFS: {human_size(usage.unpacked)}\n")
            if usage.partial:
                write(f"Received by interrupted pulls: {human_size(usage.partial)}\n")
            if verbose:
                _print_details(usage, images, containers, no_trunc=no_trunc)


def _summary(
    usage: Usage, images: list[Image], containers: list[Container], active: int, *, free: int
) -> list[dict[str, Any]]:
    mounted = [container for container in containers if container.target is not None]
    idle = sum(usage.containers.get(container.id, 0) for container in containers if container.target is None)
    layers = sum(layer.disk for layer in usage.layers)
    return [
        {"Type": "Images", "Total": len(images), "Active": active, "Size": layers + usage.trees, "Reclaimable": free},
        {
            "Type": "Containers",
            "Total": len(containers),
            "Active": len(mounted),
            "Size": sum(usage.containers.values()),
            "Reclaimable": idle,
        },
    ]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    share = f" ({100 * row['Reclaimable'] // row['Size']}%)" if row["Size"] else ""
    return {**row, "Size": human_size(row["Size"]), "Reclaimable": human_size(row["Reclaimable"]) + share}


def _print_details(usage: Usage, images: list[Image], containers: list[Container], *, no_trunc: bool) -> None:
    names = {image.id: image.names[0] if image.names else "<none>:<none>" for image in images}
    table = Format("table")
    rows = []
    for item in usage.images:
        repository, _, tag = names.get(item.id, "<none>:<none>").rpartition(":")
        rows.append(
            {
                "Repository": repository,
                "Tag": tag,
                "ID": str(item.id) if no_trunc else item.id.short,
                "Size": human_size(item.size),
                "SharedSize": human_size(item.shared),
                "UniqueSize": human_size(item.unique),
                "Containers": item.containers,
            }
        )
    write("\nImages:\n")
    print_listing(table, _IMAGES, rows)
    write("\nLayers:\n")
    print_listing(
        table,
        _LAYERS,
        [
            {
                "ID": str(layer.diff_id) if no_trunc else layer.diff_id.short,
                "Size": human_size(layer.size),
                "Disk": human_size(layer.disk),
                "Borrowed": human_size(layer.borrowed),
                "Images": layer.images,
            }
            for layer in usage.layers
        ],
    )
    write("\nContainers:\n")
    print_listing(
        table,
        _CONTAINERS,
        [
            {
                "ID": container.id if no_trunc else container.id[:12],
                "Name": container.name,
                "Disk": human_size(usage.containers.get(container.id, 0)),
            }
            for container in containers
        ],
    )


def _document(usage: Usage, images: list[Image], containers: list[Container]) -> dict[str, object]:
    names = {image.id: list(image.names) for image in images}
    return {
        "total": usage.total,
        "saved_by_layers": usage.saved_by_layers,
        "saved_by_files": usage.saved_by_files,
        "trees": usage.trees,
        "unpacked": usage.unpacked,
        "partial": usage.partial,
        "images": [
            {
                "Id": str(image.id),
                "RepoTags": names.get(image.id, []),
                "Size": image.size,
                "SharedSize": image.shared,
                "UniqueSize": image.unique,
                "Containers": image.containers,
            }
            for image in usage.images
        ],
        "layers": [
            {
                "diff_id": str(layer.diff_id),
                "size": layer.size,
                "disk": layer.disk,
                "borrowed": layer.borrowed,
                "images": layer.images,
            }
            for layer in usage.layers
        ],
        "containers": [
            {"Id": container.id, "Names": [container.name], "disk": usage.containers.get(container.id, 0)}
            for container in containers
        ],
    }
