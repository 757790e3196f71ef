"""``layerfs logout``: forget the credential for a registry."""

from __future__ import annotations

import click

from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.registry_option import credential_helpers, login_file

__all__ = ["command"]


@verb("logout", short_help="Log out of a registry.")
@click.argument("registry", metavar="[REGISTRY]", default="docker.io")
@click.option(
    "--authfile", metavar="FILE", type=click.Path(), envvar="REGISTRY_AUTH_FILE", show_envvar=True,
    help="Where the credential is, if not where login keeps it.",
)  # fmt: skip
@click.option("-a", "--all", "everything", is_flag=True, help="Log out of all registries.")
def command(registry: str, authfile: str | None, *, everything: bool) -> None:
    """Forget the credential for a registry, docker.io by default."""
    from layerfs.registry.query import log_out, registry_domain

    wanted = None if everything else registry_domain(registry)
    for key in log_out(wanted, login_file(authfile), credential_helpers()):
        write(f"Removed login credentials for {key}\n")
