"""``layerfs gc``: room for others."""

from __future__ import annotations

import click

from layerfs_cli.output import Format, FormatType, as_json, print_document, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size

__all__ = ["command"]


@verb("gc", short_help="Remove what nothing refers to.")
@click.option("--format", "form", type=FormatType(), help="json, jsonl or a Go template.")
@click.pass_context
def command(context: click.Context, form: Format | None) -> None:
    """Remove what nothing refers to: layers of no image, and what loads left that were killed.

    Loads and rmi do this by themselves; after a crash it need not wait for them. Images, containers and running loads
    keep what is theirs. The other name of this verb is prune.
    """
    with settings_of(context).open_store() as store:
        gone = store.gc()
    document = {
        "layers": [str(layer) for layer in gone.layers],
        "trees": gone.trees,
        "documents": gone.blobs,
        "space_reclaimed": gone.size,
    }
    if form is not None and form.template is not None:
        write(form.template.render(document) + "\n")
    elif form is not None and form.kind == "json":
        print_document(document)
    elif form is not None and form.kind == "jsonl":
        write(as_json(document) + "\n")
    else:
        write("".join(f"Deleted: {layer}\n" for layer in gone.layers))
        write(f"Total reclaimed space: {human_size(gone.size)}\n")
