"""``layerfs version``: what runs here."""

from __future__ import annotations

import os
import platform

import click

from layerfs_cli.output import Format, FormatType, as_json, print_document, write
from layerfs_cli.program import verb

__all__ = ["command"]


@verb("version", short_help="Show versions.")
@click.option("--format", "form", type=FormatType(), help="json, jsonl or a Go template.")
def command(form: Format | None) -> None:
    """Show the versions of layerfs, of its store's format, of Python and of the kernel."""
    from layerfs import __version__
    from layerfs.formats.platform import Platform
    from layerfs.store.handle import FORMAT_VERSION

    system = os.uname()
    document = {
        "Version": __version__,
        "StoreFormat": FORMAT_VERSION,
        "Python": platform.python_version(),
        "Kernel": system.release,
        "OsArch": str(Platform.host()),
    }
    if form is not None and form.template is not None:
        write(form.template.render(document) + "\n")
    elif form is not None and form.kind == "json":
        print_document(document)
    elif form is not None and form.kind == "jsonl":
        write(as_json(document) + "\n")
    else:
        write("".join(f"{name + ':':<13}{value}\n" for name, value in document.items()))
