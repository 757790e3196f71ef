"""How a load, pull or push gets on.

Bars on a terminal, one line per finished layer otherwise, both on standard error; or events for programs, on standard
output.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import click

from layerfs_cli.failure import Terminated
from layerfs_cli.output import STDOUT, as_json, flush, write
from layerfs_cli.settings import Settings
from layerfs_cli.text import human_size, printable, shorten

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

    from layerfs.registry.loader import Progress

__all__ = ["EventProgress", "PlainProgress", "TerminalProgress", "events_option", "layer_label", "show_progress"]

_FINISHED: Final = frozenset(
    {
        "Load complete",
        "Pull complete",
        "Already exists",
        "Pushed",
        "Layer already exists",
        "Copy complete",
        "Compressed",
    }
)

#: How a state begins that is finished as well, and says from where.
_MOUNTED: Final = "Mounted from "

#: States with a number of bytes that grows.
_MOVING: Final = frozenset({"Loading", "Downloading", "Extracting", "Pushing", "Copying", "Compressing"})
_HEX: Final = re.compile(r"[0-9a-f]{64,}")

#: Lines of a terminal that the bars leave to what was there before.
_ROOM_ABOVE: Final = 3


def events_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--format jsonl``, which the verb takes as ``events``."""
    return click.option(
        "--format", "events", type=click.Choice(("plain", "jsonl")), default="plain", show_default=True,
        callback=lambda _context, _parameter, value: value == "jsonl",
        help="jsonl prints one object per event to standard output.",
    )(function)  # fmt: skip


@contextmanager
def show_progress(settings: Settings, *, quiet: bool, events: bool = False) -> Iterator[Progress | None]:
    """Return what a transfer shall tell its progress to; None when nobody wants to know."""
    if events:
        yield EventProgress()
    elif quiet or settings.quiet:
        yield None
    elif sys.stderr is not None and sys.stderr.isatty():
        with TerminalProgress(color=settings.color) as bars:
            yield bars
    else:
        yield PlainProgress()


def layer_label(key: str) -> str:
    """Return 12 characters for a layer: of its digest, where its name has one."""
    found = _HEX.search(key)
    return found[0][:12] if found else shorten(printable(key), 12)


def _is_finished(state: str) -> bool:
    return state in _FINISHED or state.startswith(_MOUNTED)


class EventProgress:
    """One JSON object per event."""

    def update(self, key: str, state: str, done: int, total: int | None) -> None:
        """Print the event, at once."""
        event = {"id": key, "status": state, **({} if total is None else {"current": done, "total": total})}
        try:
            write(as_json(event) + "\n")
            flush()
        except BrokenPipeError:
            raise Terminated(signal.SIGPIPE) from None  # who reads the events wants no more of this
        except OSError as error:
            # As another kind of error: those of the operating system are the store's, in a transfer.
            raise click.ClickException(f"{STDOUT}: {error.strerror}") from error


class PlainProgress:
    """One line per finished layer."""

    def update(self, key: str, state: str, done: int, total: int | None) -> None:  # noqa: ARG002 - of the protocol
        """Print the line of a finished layer."""
        if _is_finished(state):
            size = f" {human_size(total)}" if total else ""
            with suppress(OSError):  # nobody reads it, and the load goes on
                click.echo(f"{layer_label(key)}: {state}{size}", err=True)


class TerminalProgress:
    """Bars: one line per layer, as far as the terminal has lines; layers at work come first."""

    def __init__(self, *, color: bool | None) -> None:
        """Prepare the bars.

        Args:
            color: False for none.
        """
        import shutil  # here: it brings all compressions of the standard library along

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(file=sys.stderr, no_color=True if color is False else None, highlight=False)
        self._bars: Bars = Progress(
            TextColumn("{task.fields[label]}: {task.fields[state]:<20}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._room = max(1, shutil.get_terminal_size().lines - _ROOM_ABOVE)

    def __enter__(self) -> Self:
        """Show them."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them as they are."""
        self._bars.stop()

    def update(self, key: str, state: str, done: int, total: int | None) -> None:
        """Move a layer's bar."""
        task = self._tasks.get(key)
        if task is None:
            label = layer_label(key)
            task = self._tasks[key] = self._bars.add_task("", label=label, state=state, amount="", total=total or 1)
            if len(self._tasks) > self._room:
                self._bars.update(task, visible=False)
        finished = _is_finished(state)
        # A bar without total would pulse: a finished one is full, a waiting one empty.
        full = total or 1
        speed = None if finished else self._task(task).speed
        amount = human_size(total) if finished and total else ""
        if state in _MOVING:
            amount = f"{human_size(done)}/{human_size(full)}"
            if speed:
                amount += f"  {human_size(int(speed))}/s  {_time_left(full - done, speed)}"
        changed = self._task(task).fields["state"] != state
        self._bars.update(
            task, completed=full if finished else done, total=full, state=state, amount=amount, visible=None
        )  # fmt: skip
        if changed and len(self._tasks) > self._room:
            self._choose_visible()

    def _task(self, task: TaskID) -> Task:
        return self._bars.tasks[task]

    def _choose_visible(self) -> None:
        """Show what is at work, then what was finished last, then what waits, in the order of the layers."""
        tasks = self._bars.tasks
        at_work = [
            task.id for task in tasks if not (_is_finished(task.fields["state"]) or task.fields["state"] == "Waiting")
        ]
        finished = sorted(
            (task for task in tasks if _is_finished(task.fields["state"])), key=lambda task: -(task.finished_time or 0)
        )
        waiting = [task.id for task in tasks if task.fields["state"] == "Waiting"]
        shown = set([*at_work, *waiting[:2], *(task.id for task in finished), *waiting[2:]][: self._room])
        for task in tasks:
            if task.visible != (task.id in shown):
                self._bars.update(task.id, visible=task.id in shown)


def _time_left(size: int, speed: float) -> str:
    """Return how long so many bytes will take, as minutes and seconds."""
    seconds = int(size / speed)
    return f"{seconds // 60}:{seconds % 60:02}"
