"""``layerfs completion``: the shell completes verbs, options, images and containers."""

from __future__ import annotations

import click

from layerfs_cli.output import write
from layerfs_cli.program import program, verb

__all__ = ["command"]

#: Bash takes a colon for the end of a word, and most names have one: for a tag, a port, a transport. So the line is
#: split at spaces here, and what stands before the last colon is left out of the answers, as bash puts them behind it.
#: A line with quotes is left to bash.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" words="${COMP_WORDS[*]}" count=$COMP_CWORD
    local before="" current response completion type value
    local -a split
    if [[ $line != *[\\'\\"\\\\]* && $COMP_WORDBREAKS == *:* ]]; then
        IFS=$' \\t' read -ra split <<< "$line"
        [[ $line == *[[:space:]] ]] && split+=("")
        words="${split[*]}"
        count=$((${#split[@]} - 1))
        current="${split[count]##*=}"
        [[ $current == *:* ]] && before="${current%%:*}:"
    fi
    response=$(env COMP_WORDS="$words" COMP_CWORD=$count %(complete_var)s=bash_complete "$1")
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        case $type in
            dir) COMPREPLY=(); compopt -o dirnames ;;
            file) COMPREPLY=(); compopt -o default ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


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
    write((_BASH if shell == "bash" else complete.source_template) % complete.source_vars())
