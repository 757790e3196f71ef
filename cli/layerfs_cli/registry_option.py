"""Options of the verbs that talk to registries, and the files and variables that docker and podman have for the same.

Together with :mod:`layerfs_cli.settings` what reads the environment. What works there works here unchanged:
auth files and helpers, certs.d, registries.conf, policy.json, proxies.

Source: containers-auth.json(5), containers-registries.conf(5), containers-policy.json(5), containers-certs.d(5).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from layerfs_cli.settings import settings_of

if TYPE_CHECKING:
    from layerfs.formats.auth_file import Credential
    from layerfs.registry.access import Access

__all__ = [
    "access_of",
    "ask_password",
    "auth_files",
    "credential_helpers",
    "login_file",
    "narrowed",
    "parse_credential",
    "policy_file",
    "policy_options",
    "registry_options",
    "sending_options",
    "transfer_options",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_SYSTEM: Final = "/etc/containers"

#: Names of the options, which a verb passes on to :func:`access_of`.
_NAMES: Final = (
    "authfile", "creds", "no_creds", "registry_token", "cert_dir", "tls_verify", "policy", "insecure_policy", "jobs",
    "retry", "retry_delay",
)  # fmt: skip


def registry_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about reaching registries; the verb takes them as ``options`` for :func:`access_of`."""
    for option in reversed(
        [
            click.option(
                "--authfile", metavar="FILE", type=click.Path(), envvar="REGISTRY_AUTH_FILE", show_envvar=True,
                help="Credentials, instead of those of podman and docker.",
            ),
            click.option("--creds", metavar="USER[:PASSWORD]", help="Use these credentials; asks for the password."),
            click.option("--no-creds", is_flag=True, help="Use no credentials."),
            click.option("--registry-token", metavar="TOKEN", help="Send this bearer token."),
            click.option(
                "--cert-dir", metavar="DIR", type=click.Path(), help="Certificates (*.crt, *.cert, *.key) to use."
            ),
            click.option(
                "--tls-verify/--no-tls-verify", default=None,
                help="Whether certificates must be good; without, plain HTTP is allowed too.",
            ),
            click.option(
                "--retry", metavar="N", type=click.IntRange(0, 100), default=5, show_default=True,
                help="Further attempts at what may succeed later.",
            ),
            click.option(
                "--retry-delay", metavar="SECONDS", type=click.FloatRange(0, 3600), default=1.0, show_default=True,
                help="Before the first of them; then twice that, and so on.",
            ),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about the trust policy; see :func:`policy_file`."""
    for option in reversed(
        [
            click.option(
                "--policy", metavar="FILE", type=click.Path(), help="Trust policy, instead of the usual policy.json."
            ),
            click.option("--insecure-policy", is_flag=True, help="Ask no trust policy."),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


def sending_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of :func:`registry_options`, and how many layers go at a time."""
    option = click.option(
        "-j", "--jobs", metavar="N", type=click.IntRange(1, 64), default=3, show_default=True,
        help="Layers transferred at a time.",
    )  # fmt: skip
    return registry_options(option(function))


def transfer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of :func:`sending_options`, and those about the trust policy, which is about what comes in."""
    return sending_options(policy_options(function))


def access_of(options: dict[str, Any]) -> Access:
    """Return how registries are reached, by options and environment; what is taken is removed from ``options``.

    Raises:
        click.UsageError: options exclude each other, or a password would have to be asked for without a terminal.
    """
    from layerfs.registry.access import DEFAULT_JOBS, Access

    context = click.get_current_context(silent=True)
    if context is not None:
        settings_of(context).take_warnings()
    given = {name: options.pop(name) for name in _NAMES if name in options}
    credential = None
    if given["creds"] is not None:
        if given["no_creds"]:
            raise click.UsageError("--creds and --no-creds exclude each other")
        credential = parse_credential(given["creds"])
    policy = policy_file(given.get("policy"), insecure=given.get("insecure_policy", False))
    return Access(
        auth_files=auth_files(),
        required_auth_file=given["authfile"] or None,
        credential=credential,
        anonymous=given["no_creds"],
        token=given["registry_token"],
        authorities=tuple(filter(None, os.environ.get("SSL_CERT_DIR", "").split(":"))),
        certificate_roots=_certificate_roots(),
        certificates=given["cert_dir"],
        verify_tls=given["tls_verify"],
        registries=_registries(),
        policy=policy,
        proxies=_proxies(),
        jobs=given.get("jobs") or DEFAULT_JOBS,
        attempts=given["retry"] + 1,
        retry_delay=given["retry_delay"],
    )


def policy_file(named: str | None, *, insecure: bool) -> str | None:
    """Return the trust policy that counts: the one named, else the user's, else the system's; None for none."""
    return None if insecure else named or _first(_configs("policy.json"))


def narrowed(
    access: Access, side: str, place: str, credential: str | None, *, verify_tls: bool | None
) -> Access | None:
    """Return how one side of a copy is reached, or None if no option is about that side alone.

    Args:
        access: how both are.
        side: what the side's options begin with.
        place: what the side is.
        credential: of ``--SIDE-creds``.
        verify_tls: of ``--SIDE-tls-verify``.

    Raises:
        click.UsageError: as :func:`parse_credential`; or the place is no registry.
    """
    from dataclasses import replace

    found = None
    given = {f"--{side}-creds": credential, f"--{side}-tls-verify": verify_tls}
    for option, value in given.items():
        if value is not None and not place.startswith("docker://"):
            raise click.UsageError(f"{option} is about a registry, and {place} is none")
    if credential is not None:
        known = parse_credential(credential, f"--{side}-creds")
        found = replace(access, credential=known, anonymous=False, token=None)
    if verify_tls is not None:
        found = replace(found or access, verify_tls=verify_tls)
    return found


def parse_credential(text: str, option: str = "--creds") -> Credential:
    """Read the ``USER:PASSWORD`` of an option, asking for a password that is not there.

    Raises:
        click.UsageError: it cannot be asked for.
    """
    from layerfs.formats.auth_file import Credential

    user, colon, password = text.partition(":")
    if not user:
        raise click.UsageError(f"{option} needs a user")
    if not colon:
        password = ask_password(f"give {option} USER:PASSWORD, or log in first", prompt=f"Password of {user}")
    return Credential(user, password)


def ask_password(instead: str, *, prompt: str = "Password") -> str:
    """Ask for a password on the terminal, without showing it.

    Args:
        instead: what to do where there is no terminal.
        prompt: says whose it is.

    Raises:
        click.UsageError: there is no terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"no password, and no terminal to ask for it: {instead}")
    return str(click.prompt(prompt, hide_input=True, err=True))


def login_file(authfile: str | None) -> str:
    """Return the file that login writes: the one named, else docker's if its variable is set, else podman's."""
    if authfile:
        return authfile
    docker = os.environ.get("DOCKER_CONFIG")
    if docker:
        return os.path.join(docker, "config.json")
    return _runtime_file() or os.path.join(_config_home(), "containers", "auth.json")


def credential_helpers() -> tuple[str, ...]:
    """Return the credential helpers of registries.conf, in order."""
    from layerfs.registry.access import Access

    return Access(registries=_registries()).read_registries().credential_helpers


def auth_files() -> tuple[str, ...]:
    """Return the files with credentials in their order; $DOCKER_CONFIG hides all the others."""
    docker = os.environ.get("DOCKER_CONFIG")
    if docker:
        return (os.path.join(docker, "config.json"),)
    home = os.path.expanduser("~")
    run = _runtime_file()
    return (
        *([run] if run else []),
        os.path.join(_config_home(), "containers", "auth.json"),
        os.path.join(home, ".docker", "config.json"),
        os.path.join(home, ".dockercfg"),
    )


def _certificate_roots() -> tuple[str, ...]:
    # The manual knows no $XDG_CONFIG_HOME here, and whoever sets that expects it to count.
    homes = dict.fromkeys((_config_home(), os.path.join(os.path.expanduser("~"), ".config")))
    users = (os.path.join(home, "containers", "certs.d") for home in homes)
    return (*users, f"{_SYSTEM}/certs.d", "/etc/docker/certs.d")


def _registries() -> tuple[str, ...]:
    """Return the files of registries.conf: the user's main file hides the system's and its drop-ins.

    Raises:
        click.UsageError: the one that is named in the environment is not there: what it blocks would be asked.
    """
    user, system = _configs("registries.conf")
    named = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    if named and not os.path.exists(named):
        raise click.UsageError(f"there is no {named}, which CONTAINERS_REGISTRIES_CONF names")
    if not named and os.path.exists(user):
        return (user, *_drop_ins(f"{user}.d"))
    return (named or system, *_drop_ins(f"{system}.d"), *_drop_ins(f"{user}.d"))


def _drop_ins(directory: str) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".conf"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        from layerfs.errors import LayerfsError

        # What it blocks is not to be let through.
        raise LayerfsError(f"cannot read {directory}: {error.strerror}") from error
    return [os.path.join(directory, name) for name in names]


def _configs(name: str) -> tuple[str, str]:
    """Return the user's and the system's file of a name, whether they are there or not."""
    return os.path.join(_config_home(), "containers", name), os.path.join(_SYSTEM, name)


def _first(paths: tuple[str, ...]) -> str | None:
    return next((path for path in paths if os.path.exists(path)), None)


def _proxies() -> dict[str, str]:
    found = {}
    for scheme in ("http", "https", "no"):  # not "all", which podman and docker do not read
        value = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
        if value:
            found[scheme] = value
    return found


def _config_home() -> str:
    value = os.environ.get("XDG_CONFIG_HOME", "")
    return value if os.path.isabs(value) else os.path.join(os.path.expanduser("~"), ".config")


def _runtime_file() -> str | None:
    """Return the file where podman keeps credentials until the machine is started anew, if this user can have one."""
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(value):
        return os.path.join(value, "containers", "auth.json")
    return "/run/containers/0/auth.json" if os.geteuid() == 0 else None  # root's alone: nobody else may make it
