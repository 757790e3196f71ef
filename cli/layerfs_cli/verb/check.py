"""``layerfs check``: is the store whole?"""

from __future__ import annotations

from typing import Final

import click

from layerfs_cli.output import Column, Format, format_option, print_listing
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of

__all__ = ["command"]

_COLUMNS: Final = (
    Column("KIND", "Kind"),
    Column("NAME", "Name"),
    Column("REPAIRED", "Repaired"),
    Column("PROBLEM", "Message"),
)


@verb("check", short_help="Read the whole store and report what is damaged.")
@click.option("--repair", is_flag=True, help="Rebuild what can be made from what is there.")
@format_option()
@click.pass_context
def command(context: click.Context, form: Format, *, repair: bool) -> None:
    """Read the whole store and report what is damaged; nothing is printed about a store that is whole.

    Exits with 1 when something is damaged and was not repaired. A damaged layer is replaced by loading an image again
    that has it. Fields of templates: .Kind .Name .Repaired .Message .Hint
    """
    with settings_of(context).open_store() as store:
        problems = list(store.check(repair=repair))
    rows = [
        {
            "Kind": problem.kind,
            "Name": problem.name,
            "Repaired": problem.repaired,
            "Message": problem.message,
            "Hint": problem.hint or "",
        }
        for problem in problems
    ]
    documents = [
        {
            "kind": problem.kind,
            "name": problem.name,
            "repaired": problem.repaired,
            "message": problem.message,
            "hint": problem.hint,
        }
        for problem in problems
    ]
    if problems or form.kind == "json":
        print_listing(form, _COLUMNS, rows, documents)
    hints = dict.fromkeys(problem.hint for problem in problems if problem.hint and not problem.repaired)
    for hint in hints:
        click.echo(f"layerfs: hint: {hint}", err=True)
    if any(not problem.repaired for problem in problems):
        context.exit(1)
