"""The command group: verbs are imported when they are used, errors become one line and an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from layerfs.linux.standard_descriptors import fill_standard_descriptors
from layerfs_cli.catalog import ALIASES, SECTIONS, VERBS
from layerfs_cli.failure import Terminated, report
from layerfs_cli.output import flush
from layerfs_cli.settings import Settings, global_options, quiet_option

__all__ = ["Verb", "program", "verb"]

_DOCUMENTATION = """Images are named by name, ID, or the unique beginning of an ID (at least 4 digits).
Results go to standard output, everything else to standard error. Flags above may also follow the verb, -q has a meaning
of its own there.

Exit codes: 0 done, 1 other error, 2 usage, 3 not found, 4 damaged content, 5 registry, 6 conflict, 7 store unusable,
8 mount failed, 130 interrupted."""

#: click knows flags or options, not flags that may have a value.
_VALUED = {
    f"--{side}tls-verify={word}": f"--{'no-' if word in ('false', '0') else ''}{side}tls-verify"
    for side in ("", "src-", "dest-")
    for word in ("true", "1", "false", "0")
}


class Verb(click.Command):
    """A verb: a command that also takes the global flags."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        """Make the command and give it the global flags, out of sight."""
        super().__init__(*args, **attributes)
        self.params += global_options(hidden=True)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words behind the verb, flags with a value as podman and skopeo have them included."""
        return super().parse_args(ctx, [_VALUED.get(word, word) for word in args])


class Program(click.Group):
    """The group of all verbs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - of click
        """Return the verbs in the order of the help text."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - of click
        """Import a verb."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"layerfs_cli.verb.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - of click
        """Write the verbs by section, from the catalog alone."""
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(verbs.items()), col_max=12)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a verb and leave: with its exit code, or with that of the error it ended with.

        Args:
            args: the words after the program's name; None takes the process's own.
            prog_name: name of the program for help and errors.
            standalone_mode: taken for callers that know click; this program always leaves by SystemExit.
            extra: for click's context.
        """
        settings = Settings()
        del standalone_mode
        fill_standard_descriptors()
        try:
            # Not click's own main(): that one turns a broken pipe into exit code 1 and an interrupt into another error.
            name = prog_name or "layerfs"
            self._main_shell_completion(extra, name)
            words = sys.argv[1:] if args is None else list(args)
            if not words:  # an error with the help text; what click itself makes of it differs between versions
                with self.make_context(name, [], obj=settings, resilient_parsing=True, **extra) as context:
                    click.echo(self.get_help(context), err=True)
                raise SystemExit(2)
            with self.make_context(name, words, obj=settings, **extra) as context:
                self.invoke(context)
            flush()
            code = 0
        except click.exceptions.Exit as leaving:
            code = leaving.exit_code
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - a user sees no traceback
            code = report(error, debug=settings.debug)
        raise SystemExit(code)


def verb(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Make a function a verb; its docstring is the help text."""
    return click.command(name, cls=Verb, **attributes)


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - of click
    if value and not context.resilient_parsing:
        from layerfs import __version__

        click.echo(f"layerfs {__version__}")
        context.exit()


program = Program(
    name="layerfs",
    help="Container images in, mounted file systems out.",
    epilog=_DOCUMENTATION,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    params=[
        *global_options(hidden=False),
        quiet_option(),
        click.Option(
            ["-v", "--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_print_version,
            help="Show the version and leave.",
        ),
    ],
)
