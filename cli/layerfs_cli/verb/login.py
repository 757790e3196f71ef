"""``layerfs login``: keep a credential for a registry."""

from __future__ import annotations

import sys
from typing import Any

import click

from layerfs_cli.output import write
from layerfs_cli.program import verb
from layerfs_cli.registry_option import access_of, ask_password, login_file, registry_options
from layerfs_cli.settings import settings_of

__all__ = ["command"]

#: Characters of a password from standard input; tokens have some thousands.
_MAX_PASSWORD = 64 << 10


@verb("login", short_help="Log in to a registry.")
@click.argument("registry", metavar="[REGISTRY]", default="docker.io")
@click.option("-u", "--username", metavar="USER", help="Asked for when it is missing.")
@click.option("-p", "--password", metavar="PASSWORD", help="Better not: others can read it in the list of processes.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@registry_options
@click.pass_context
def command(
    context: click.Context,
    /,
    registry: str,
    username: str | None,
    password: str | None,
    *,
    password_stdin: bool,
    **options: Any,
) -> None:
    """Log in to a registry, docker.io by default, and keep the credential for pull, push and tags.

    Without a user and password it says whether the credential that is kept already is a good one, and asks only if not.
    What is given is checked with the registry, then kept where docker and podman find it as well: in the file of
    --authfile, $REGISTRY_AUTH_FILE or $DOCKER_CONFIG, else in containers/auth.json below $XDG_RUNTIME_DIR; or by the
    helper that this file names.
    """
    from dataclasses import replace

    from layerfs.formats.auth_file import Credential
    from layerfs.registry.query import is_logged_in, log_in, registry_domain

    place = login_file(options["authfile"])
    options["authfile"] = None
    key = registry_domain(registry)
    access = access_of(options)
    if access.credential is not None:
        username, password = access.credential.username, access.credential.password
    if password is not None and password_stdin:
        raise click.UsageError("--password and --password-stdin exclude each other", context)
    if password is not None and access.credential is None:
        settings_of(context).log("warning", "a password on the command line is seen by others; use --password-stdin")
    if username is None and password is None and not password_stdin:
        already = is_logged_in(replace(access, auth_files=(place,)), key)
        if already is not None:
            settings_of(context).log("info", f"already logged in as {already or 'the owner of a token'}")
            write("Login Succeeded!\n")
            return
    if username is None:
        if password_stdin or sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("--username is needed", context)
        username = str(click.prompt("Username", err=True))
    if password_stdin:
        if sys.stdin is None:
            raise click.UsageError("standard input is closed", context)
        password = sys.stdin.read(_MAX_PASSWORD).rstrip("\r\n")
    elif password is None:
        password = ask_password("use --password-stdin")
    if not password:
        raise click.UsageError("the password is empty", context)
    keeper = log_in(access, key, Credential(username, password), place)
    settings_of(context).log("info", f"kept by {keeper}")
    write("Login Succeeded!\n")
