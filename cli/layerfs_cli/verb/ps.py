"""``layerfs ps``: which containers there are."""

from __future__ import annotations

from typing import Final

import click

from layerfs_cli.argument import no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, format_option, print_listing, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_age, human_size, rfc3339

__all__ = ["command"]

_COLUMNS: Final = (
    Column("CONTAINER ID", "ID"),
    Column("IMAGE", "Image"),
    Column("CREATED", "CreatedSince"),
    Column("STATUS", "Status"),
    Column("TARGET", "Target"),
    Column("SIZE", "Size"),
    Column("NAME", "Name"),
)


@verb("ps", short_help="List containers.")
@click.option("-q", "--quiet", is_flag=True, help="Print container IDs alone.")
@click.option("-s", "--size", "with_size", is_flag=True, help="Measure what was written in each.")
@no_trunc_option
@noheading_option
@format_option()
@click.pass_context
def command(
    context: click.Context, form: Format, *, quiet: bool, with_size: bool, no_trunc: bool, noheading: bool
) -> None:
    """List containers, mounted or not, the newest first.

    A container is dead whose FUSE process was killed: umount it, or mount it again.

    Fields of templates: .ID .Name .Image .ImageID .CreatedAt .CreatedSince .Status .Target .Size
    """
    with settings_of(context).open_store() as store:
        found = store.containers()
        sizes = store.usage().containers if with_size else {}
    if quiet:
        write("".join(f"{container.id if no_trunc else container.id[:12]}\n" for container in found))
        return
    rows = []
    documents = []
    for container in found:
        size = sizes.get(container.id)
        image_id = str(container.image_id) if no_trunc else container.image_id.short
        rows.append(
            {
                "ID": container.id if no_trunc else container.id[:12],
                "Name": container.name,
                "Image": container.image_name or image_id,
                "ImageID": image_id,
                "CreatedAt": rfc3339(container.created) or "",
                "CreatedSince": human_age(container.created),
                "Status": "dead" if container.dead else "unmounted" if container.target is None else "mounted",
                "Target": container.target or "",
                "Size": "" if size is None else human_size(size),
            }
        )
        documents.append(
            {
                "Id": container.id,
                "Names": [container.name],
                "Image": container.image_name,
                "ImageID": str(container.image_id),
                "Created": rfc3339(container.created),
                "mountpoint": container.target,
                "dead": container.dead,
                "Size": size,
            }
        )
    columns = [column for column in _COLUMNS if with_size or column.field != "Size"]
    print_listing(form, columns, rows, documents, heading=not noheading)
