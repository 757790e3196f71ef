"""``layerfs logout``: forget the credential for a registry."""

from __future__ import annotations

import contextlib

import click

from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.registry_option import auth_files, credential_helpers, login_file

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
    from layerfs.errors import LayerfsError, NotFound
    from layerfs.registry.credential import read_auth_file
    from layerfs.registry.query import log_out, registry_domain

    wanted, place = None if everything else registry_domain(registry), login_file(authfile)
    try:
        forgotten = log_out(wanted, place, credential_helpers())
    except NotFound as error:
        # A pull looks into more files than a login writes.
        for path in auth_files():
            file = None
            with contextlib.suppress(LayerfsError):  # what is wrong with others is not asked for
                file = read_auth_file(path) if path != place else None
            if wanted is not None and file is not None and wanted in file.credentials:
                hint = f"It is in another file: layerfs logout --authfile {path} {wanted}"
                raise NotFound(error.kind, error.name, hint=hint) from None
        raise
    for key in forgotten:
        write(f"Removed login credentials for {key}\n")
