"""A plain tar to read, from a file or standard input, whatever it is compressed with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import click

from layerfs_cli.standard_input import standard_input

__all__ = ["tar_pieces"]


def tar_pieces(context: click.Context, source: str, stack: ExitStack) -> Iterator[bytes]:
    """Return the pieces of a tar in a file or on standard input, decompressed.

    Args:
        context: for usage errors.
        source: path, or ``-``.
        stack: closes the file.
    """
    from layerfs.formats.codec import decompress, detect, rejoined

    if source == "-":
        if sys.stdin is None or os.isatty(sys.stdin.fileno()):
            what = "closed" if sys.stdin is None else "a terminal"
            raise click.UsageError(f"standard input is {what}: redirect a tar into it, or name one", context)
        file = stack.enter_context(standard_input())
    else:
        file = stack.enter_context(open(source, "rb", buffering=0))  # noqa: SIM115 - the stack closes it
    head = file.read(1 << 16)
    while len(head) < 512 and (more := file.read(512)):
        head += more
    return decompress(rejoined(head, file.read), detect(head))
