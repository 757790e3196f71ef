"""The file that ``--digestfile`` names, for scripts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from layerfs.formats.digest import Digest

__all__ = ["digestfile_option", "write_digest"]


def _checked(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a file that cannot be made, before anything is sent."""
    if value and os.path.isdir(value):
        raise click.BadParameter(f"{value} is a directory", context, parameter)
    if value and not os.path.isdir(os.path.dirname(os.path.abspath(value))):
        raise click.BadParameter(f"there is no directory for {value}", context, parameter)
    return value


def digestfile_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--digestfile``, which the verb hands to :func:`write_digest`."""
    return click.option(
        "--digestfile", metavar="FILE", type=click.Path(), callback=_checked,
        help="Write the digest of the manifest to this file.",
    )(function)  # fmt: skip


def write_digest(path: str | None, digest: Digest) -> None:
    """Write a digest to the file that was named, if one was."""
    if path:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(digest))
