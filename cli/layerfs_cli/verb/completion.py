"""``layerfs completion``: the shell completes verbs, options, images and containers."""

from __future__ import annotations

import click

from layerfs_cli.output import write
from layerfs_cli.program import program, verb

__all__ = ["command"]


@verb("completion", short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print the completion script for a shell.

    \b
      bash   layerfs completion bash > ~/.local/share/bash-completion/completions/layerfs
      zsh    layerfs completion zsh > a directory of $fpath/_layerfs
      fish   layerfs completion fish > ~/.config/fish/completions/layerfs.fish
    """  # noqa: D301 - \b tells click not to wrap
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    # The class's own source() would run bash to learn its version; what is printed is the same.
    complete = found(program, {}, "layerfs", "_LAYERFS_COMPLETE")
    write(complete.source_template % complete.source_vars())
