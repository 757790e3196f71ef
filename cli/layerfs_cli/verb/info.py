"""``layerfs info``: which store this is, and what works on this machine."""

from __future__ import annotations

import os
import platform

import click

from layerfs import __version__
from layerfs_cli.output import Format, FormatType, as_json, print_document, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import printable

__all__ = ["command"]


@verb("info", short_help="Show this store and what works on this machine.")
@click.option("--format", "form", type=FormatType(), help="json, jsonl or a Go template such as '{{.root}}'.")
@click.pass_context
def command(context: click.Context, form: Format | None) -> None:
    """Show where the store is and why there, what is in it, and each backend: usable, or not because of what."""
    settings = settings_of(context)
    with settings.open_store() as store:
        info = store.info()
    document: dict[str, object] = {
        "version": __version__,
        "root": info.root,
        "root_source": settings.sources.get("root", "default"),
        "runroot": info.runroot,
        "runroot_source": settings.sources.get("runroot", "default"),
        "format_version": info.format_version,
        "images": info.images,
        "layers": info.layers,
        "containers": info.containers,
        "kernel": os.uname().release,
        "python": platform.python_version(),
        "backends": [
            {"backend": item.backend, "lower": item.lower, "usable": item.usable, "reason": item.reason}
            for item in info.backends
        ],
    }
    if form is not None and form.template is not None:
        write(form.template.render(document) + "\n")
    elif form is not None and form.kind == "json":
        print_document(document)
    elif form is not None and form.kind == "jsonl":
        write(as_json(document) + "\n")
    else:
        lines = [
            f"version:     {document['version']}",
            f"root:        {info.root} ({document['root_source']})",
            f"runroot:     {info.runroot} ({document['runroot_source']})",
            f"format:      {info.format_version}",
            f"images:      {info.images}",
            f"layers:      {info.layers}",
            f"containers:  {info.containers}",
            f"kernel:      {document['kernel']}",
            f"python:      {document['python']}",
            "backends:",
            *(f"  {item}" for item in info.backends),
        ]
        write("".join(f"{printable(line)}\n" for line in lines))
