"""Arguments and options that several verbs share, with what a shell offers for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from layerfs_cli.settings import settings_of

if TYPE_CHECKING:
    from layerfs.formats.platform import Platform
    from layerfs.store.handle import StoreHandle

__all__ = [
    "change_options",
    "complete_containers",
    "complete_containers_and_images",
    "complete_images",
    "complete_mounts",
    "compression_option",
    "epoch_option",
    "force_name_option",
    "image_argument",
    "images_argument",
    "is_given",
    "keep_blobs_option",
    "no_trunc_option",
    "noheading_option",
    "platform_options",
    "recompression_options",
    "selected_platform",
    "split_image_path",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

no_trunc_option: Final[Decorator] = click.option("--no-trunc", is_flag=True, help="Full IDs and texts in tables.")
noheading_option: Final[Decorator] = click.option("--noheading", is_flag=True, help="No heads above the table.")


compression_option: Final[Decorator] = click.option(
    "--compression", type=click.Choice(("none", "gzip", "zstd")), default="none", show_default=True,
    help="How the new layer stands in the image's manifest; a compressed one is kept beside the layer.",
)  # fmt: skip
force_name_option: Final[Decorator] = click.option(
    "--force", is_flag=True, help="Let NAME mean the new image even if it means another one."
)
epoch_option: Final[Decorator] = click.option(
    "--source-date-epoch", "latest", metavar="SECONDS", type=click.IntRange(min=0), envvar="SOURCE_DATE_EPOCH",
    show_envvar=True, help="Write no time after this one, in seconds since 1970.",
)  # fmt: skip
keep_blobs_option: Final[Decorator] = click.option(
    "--keep-blobs", is_flag=True,
    help="Keep the compressed layers too: the image can go out again with the same manifest digest.",
)  # fmt: skip


def change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say something of a new image: ``--message``, ``--author`` and ``--change``."""
    for option in (
        click.option(
            "-c", "--change", "changes", metavar="INSTRUCTION", multiple=True,
            help="Change a setting as a Dockerfile does, such as 'CMD [\"sh\"]' or 'ENV A=b'.",
        ),
        click.option("-a", "--author", help="Author of the image."),
        click.option("-m", "--message", default="", help="Comment of the step in the image's history."),
    ):  # fmt: skip
        function = option(function)
    return function


def recompression_options(default: str) -> Decorator:
    """Add ``--compression`` and ``--compression-level`` (as ``level``), of all layers that go out.

    Args:
        default: what is done without them.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        level = click.option(
            "--compression-level", "level", metavar="N", type=int,
            help="1 to 9 for gzip, 1 to 22 for zstd; with one, all layers are compressed anew.",
        )  # fmt: skip
        return click.option(
            "--compression", type=click.Choice(("none", "gzip", "zstd")), help=f"Of all layers.  [default: {default}]"
        )(level(function))

    return add


def complete_images(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the names of images, as users write them and in full."""
    from layerfs.formats.reference import Reference

    found: list[CompletionItem] = []
    with _peek(context) as handle:
        if handle is not None:
            from layerfs.store.image import image_names, list_images

            for image in list_images(handle):
                names = image_names(handle, image)
                shorts = [Reference.parse(name).familiar for name in names]
                fitting = [name for name in shorts if name.startswith(incomplete)] or names or [image.digest.short]
                found += [CompletionItem(name) for name in fitting if name.startswith(incomplete)]
    return found


def complete_containers(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the names of containers."""
    with _peek(context) as handle:
        if handle is None:
            return []
        from layerfs.store.snapshot import list_snapshots

        names = [snapshot.name for snapshot in list_snapshots(handle)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_containers_and_images(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer names of both."""
    return complete_containers(context, parameter, incomplete) + complete_images(context, parameter, incomplete)


def complete_mounts(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer targets and containers that are mounted."""
    with _peek(context) as handle:
        if handle is None:
            return []
        from layerfs.mount.mounted import records_of

        live = []
        with suppress(OSError):
            live = records_of(handle).live()
    names = [name for record in live for name in (record.target, record.container) if name]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@contextmanager
def _peek(context: click.Context) -> Iterator[StoreHandle | None]:
    """Open the store for a completion: never made, and never an error, because the user is still typing."""
    settings = settings_of(context)
    settings.quiet = True
    root, runroot = settings.place()
    handle = None
    if os.path.exists(os.path.join(root, "store.db")):
        # The whole library takes three times as long to import as these floors.
        from layerfs.errors import LayerfsError
        from layerfs.store.handle import open_store

        path = os.path.abspath(root)
        try:
            handle = open_store(path, os.path.abspath(runroot or os.path.join(path, "run")))
        except (LayerfsError, OSError):
            handle = None
    try:
        yield handle
    finally:
        if handle is not None:
            handle.close()


def image_argument(name: str = "image", metavar: str = "IMAGE", **attributes: Any) -> Decorator:
    """Return an argument that takes an image."""
    return click.argument(name, metavar=metavar, shell_complete=complete_images, **attributes)


def images_argument(metavar: str = "IMAGE...") -> Decorator:
    """Return an argument that takes images, at least one."""
    return image_argument("names", metavar, nargs=-1, required=True)


def platform_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--platform`` and ``--all-platforms``."""
    function = click.option(
        "--all-platforms", is_flag=True, help="Load the images for all platforms of an index."
    )(function)  # fmt: skip
    return click.option(
        "--platform", metavar="OS[/ARCH[/VARIANT]]", envvar="DOCKER_DEFAULT_PLATFORM", show_envvar=True,
        help="Which image of an index for several platforms.  [default: this machine's]",
    )(function)  # fmt: skip


def selected_platform(context: click.Context, platform: str | None, *, all_platforms: bool) -> Platform | None:
    """Return the platform that was asked for.

    Raises:
        InvalidReference: it is none.
        click.UsageError: one platform and all of them are asked for.
    """
    from layerfs.formats.platform import Platform

    if all_platforms:
        if is_given(context, "platform"):
            raise click.UsageError("--platform and --all-platforms exclude each other", context)
        return None
    return Platform.parse(platform) if platform else None


def is_given(context: click.Context, parameter: str) -> bool:
    """Whether an option stands on the command line, and not in the environment."""
    from click.core import ParameterSource

    return context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def split_image_path(text: str) -> tuple[str, bytes | None]:
    """Split ``IMAGE:/PATH`` into image and path; None when there is only an image.

    A path inside an image is absolute. ``:/`` occurs in no image name, so its first one is where the path begins.
    """
    image, mark, path = text.partition(":/")
    return (image, b"/" + os.fsencode(path)) if mark else (text, None)
