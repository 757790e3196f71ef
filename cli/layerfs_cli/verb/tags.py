"""``layerfs tags``: the tags of a repository on a registry."""

from __future__ import annotations

from typing import Any

import click

from layerfs_cli.output import as_json, print_document, write
from layerfs_cli.program import verb
from layerfs_cli.registry_option import access_of, registry_options

__all__ = ["command"]


@verb("tags", short_help="List the tags of a repository on a registry.")
@click.argument("repository", metavar="REPOSITORY")
@click.option(
    "--format", "form", type=click.Choice(("plain", "json", "jsonl")), default="plain", show_default=True,
    help="One tag a line, an array, or one object a line.",
)  # fmt: skip
@registry_options
def command(repository: str, form: str, **options: Any) -> None:
    """List the tags of a repository on a registry, in the registry's order."""
    from layerfs.registry.query import list_tags

    tags = list_tags(access_of(options), repository.removeprefix("docker://"))
    if form == "json":
        print_document(list(tags))
        return
    for tag in tags:
        write(f"{as_json({'Tag': tag}) if form == 'jsonl' else tag}\n")
