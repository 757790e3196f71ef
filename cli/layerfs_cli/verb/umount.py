"""``layerfs umount``: mounts away."""

from __future__ import annotations

import click

from layerfs_cli.argument import complete_mounts
from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.several import each

__all__ = ["command"]


@verb("umount", short_help="Unmount images and containers.")
@click.argument("names", metavar="TARGET|NAME...", nargs=-1, shell_complete=complete_mounts)
@click.option("-a", "--all", "everything", is_flag=True, help="Unmount all that layerfs mounted from this store.")
@click.option("-l", "--lazy", is_flag=True, help="Detach at once, even while in use.")
@click.option("-f", "--force", is_flag=True, help="No error for what is not mounted.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@click.pass_context
def command(
    context: click.Context, names: tuple[str, ...], *, everything: bool, lazy: bool, force: bool, quiet: bool
) -> None:
    """Unmount by target, container, or image when it is mounted once. Prints the targets.

    A container and what was written in it stay; layerfs mount --name mounts it again, layerfs rm removes it.
    """
    from layerfs.errors import NotFound

    if bool(names) == everything:
        raise click.UsageError("name what to unmount, or use --all" if not names else "--all takes no names", context)
    with settings_of(context).open_store() as store:
        if everything:
            # The newest first: one may lie inside another.
            names = tuple(mount.id for mount in reversed(store.mounts()) if not mount.hidden)
        for name in each(context, names, ignored=NotFound if force or everything else None):
            with name as text:
                gone = store.umount(text, lazy=lazy)
                if not quiet:
                    write(f"{gone.target}\n")
