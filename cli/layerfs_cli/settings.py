"""What holds for every verb: where the store is, how durable it is, how much is said.

This module and :mod:`layerfs_cli.registry_option` alone read the environment (but for systemd's address, which is
``layerfs-fuse``'s); what it means to a single option is said where the option is declared. A flag beats the
environment, the environment beats the default. Every global flag is accepted before the verb and after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from layerfs.api import Store

__all__ = ["LEVELS", "Settings", "global_options", "quiet_option", "settings_of"]

#: From the most to the least that is said on standard error.
LEVELS: Final = ("debug", "info", "warning", "error")

_SOURCES: Final = {ParameterSource.COMMANDLINE: "flag", ParameterSource.ENVIRONMENT: "environment"}


@dataclass(slots=True)
class Settings:
    """The global flags of one run.

    Attributes:
        root: directory of the store; None means the default.
        runroot: directory for what does not outlive a boot; None means the default.
        sync: whether what is reported done survives a power cut.
        quiet: no progress, and no messages but errors.
        level: one of :data:`LEVELS`.
        color: False after ``--no-color``; None decides by the terminal.
        sources: where a setting came from, by name: ``flag`` or ``environment``.
    """

    root: str | None = None
    runroot: str | None = None
    sync: bool = True
    quiet: bool = False
    level: str = "warning"
    color: bool | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def debug(self) -> bool:
        """Whether tracebacks and other details are wanted."""
        return self.level == "debug"

    def place(self) -> tuple[str, str | None]:
        """Return the root and the runroot that hold, with a warning when there is no directory for the run of a user.

        The runroot belongs to one store. So another store than the default one keeps it inside, unless it is given.
        """
        root = _default_root() if self.root is None else self.root
        if self.runroot is not None:
            return root, self.runroot
        if self.root is not None:
            return root, None
        if os.geteuid() == 0:
            return root, "/run/layerfs"
        run = _xdg("XDG_RUNTIME_DIR") or _own_runtime_directory()
        if run is None:
            self.log("warning", f"there is no XDG_RUNTIME_DIR; mounts are recorded in {os.path.join(root, 'run')}")
            return root, None
        return root, os.path.join(run, "layerfs")

    def open_store(self) -> Store:
        """Open the store, made if it is not there. Raises as :meth:`layerfs.api.Store.open`."""
        from layerfs.api import Store

        self.take_warnings()
        root, runroot = self.place()
        self.log("debug", f"store {root}, runroot {runroot or os.path.join(root, 'run')}")
        return Store.open(root, runroot=runroot, sync=self.sync)

    def take_warnings(self) -> None:
        """Say what the library warns of as this program says things; a verb without a store has to ask for it."""
        import logging

        settings = self

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                settings.log(record.levelname.lower(), record.getMessage())

        logging.getLogger("layerfs").handlers[:] = [Handler()]

    def log(self, level: str, message: str) -> None:
        """Say something on standard error, if this much is wanted."""
        wanted = "error" if self.quiet else self.level
        if LEVELS.index(level) >= LEVELS.index(wanted):
            from layerfs_cli.failure import say

            say(f"layerfs: {level}: {message}")


def settings_of(context: click.Context) -> Settings:
    """Return the settings of this run."""
    return context.ensure_object(Settings)


def global_options(*, hidden: bool) -> list[click.Option]:
    """Return the options that the program and every verb take.

    Args:
        hidden: leave them out of the help text; and take nothing from the environment, which the program did.
    """

    def option(*names: str, **attributes: object) -> click.Option:
        if hidden:
            attributes.pop("envvar", None)
        return click.Option(
            names,
            expose_value=False,
            hidden=hidden,
            is_eager=True,
            callback=_remember,
            **attributes,  # type: ignore[arg-type]
        )

    return [
        option(
            "--root", metavar="DIR", type=click.Path(readable=False), envvar="LAYERFS_ROOT", show_envvar=True,
            help="The store. Default: /var/lib/layerfs for root, $XDG_DATA_HOME/layerfs for users.",
        ),
        option(
            "--runroot", metavar="DIR", type=click.Path(readable=False), envvar="LAYERFS_RUNROOT", show_envvar=True,
            help="Records of mounts. Default: /run/layerfs for root, $XDG_RUNTIME_DIR/layerfs for users; DIR/run"
            " after --root DIR.",
        ),
        option(
            "--no-sync", is_flag=True,
            help="Do not wait for the disk. Faster, but a power cut within the next minute may lose or damage what was"
            " reported done, even the whole store.",
        ),
        option(
            "--log-level", type=click.Choice(LEVELS), envvar="LAYERFS_LOG_LEVEL", show_envvar=True,
            help="How much is said on standard error.  [default: warning]",
        ),
        option("--debug", is_flag=True, help="The same as --log-level debug; adds a traceback to errors."),
        option("--no-color", is_flag=True, help="No colours on a terminal; the same as $NO_COLOR."),
    ]  # fmt: skip


def quiet_option() -> click.Option:
    """Return the program's own ``-q``; behind a verb it may mean something else."""
    return click.Option(
        ["-q", "--quiet"], is_flag=True, expose_value=False, is_eager=True, callback=_remember,
        help="No progress and no warnings.",
    )  # fmt: skip


_EFFECTS: Final[dict[str, Callable[[Settings, object], object]]] = {
    "root": lambda settings, value: setattr(settings, "root", value),
    "runroot": lambda settings, value: setattr(settings, "runroot", value),
    "no_sync": lambda settings, value: setattr(settings, "sync", not value),
    "log_level": lambda settings, value: setattr(settings, "level", value),
    "debug": lambda settings, value: setattr(settings, "level", "debug" if value else settings.level),
    "no_color": lambda settings, value: setattr(settings, "color", not value),
    "quiet": lambda settings, value: setattr(settings, "quiet", bool(value)),
}


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value == "" and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
        # In a script it is a variable that was never set; the default store would be somebody else's.
        raise click.BadParameter("must not be empty", context, parameter)
    if not value or parameter.name is None:
        return
    settings = settings_of(context)
    _EFFECTS[parameter.name](settings, value)
    source = context.get_parameter_source(parameter.name)
    if source in _SOURCES:
        settings.sources[parameter.name] = _SOURCES[source]


def _default_root() -> str:
    if os.geteuid() == 0:
        return "/var/lib/layerfs"
    data = _xdg("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    if not os.path.isabs(data):
        raise click.UsageError(f"HOME is no absolute path ({data!r:.100}); name the store with --root")
    return os.path.join(data, "layerfs")


def _own_runtime_directory() -> str | None:
    """Return the directory that a login sets XDG_RUNTIME_DIR to: cron and su do not, and would miss its mounts."""
    place = f"/run/user/{os.geteuid()}"
    try:
        return place if os.stat(place).st_uid == os.geteuid() else None
    except OSError:
        return None


def _xdg(name: str) -> str | None:
    """Return a directory of the XDG base directory specification, which says to ignore relative ones."""
    value = os.environ.get(name, "")
    return value if os.path.isabs(value) else None
