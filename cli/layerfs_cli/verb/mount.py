"""``layerfs mount``: an image as a directory; or what is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from layerfs_cli.argument import complete_containers, image_argument, no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, FormatType, as_json, flush, print_document, print_listing, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_age, rfc3339

if TYPE_CHECKING:
    from layerfs.api import Mount
    from layerfs.mount.option import MountOptions

__all__ = ["command"]

_COLUMNS: Final = (
    Column("TARGET", "Target"),
    Column("IMAGE", "Image"),
    Column("CONTAINER", "Container"),
    Column("BACKEND", "Backend"),
    Column("READ-ONLY", "ReadOnly"),
    Column("CREATED", "CreatedSince"),
)
#: Word after -o to what it sets.
_OPTIONS: Final[dict[str, tuple[str, bool]]] = {
    "suid": ("nosuid", False),
    "nosuid": ("nosuid", True),
    "dev": ("nodev", False),
    "nodev": ("nodev", True),
    "exec": ("noexec", False),
    "noexec": ("noexec", True),
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "pyfuse3": ("pyfuse3", True),
}


@verb("mount", short_help="Mount an image, or list mounts.")
@image_argument(metavar="[IMAGE]", required=False)
@click.argument("target", metavar="[TARGET]", required=False, type=click.Path())
@click.option("--name", metavar="NAME", shell_complete=complete_containers,
              help="The container: one that exists goes on where it was, else it is made.")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Mount the image alone, without a container.")
@click.option("--backend", type=click.Choice(("auto", "overlay", "fuse")), default="auto", show_default=True,
              envvar="LAYERFS_BACKEND", show_envvar=True, help="What makes the mount.")  # fmt: skip
@click.option("--lower", type=click.Choice(("auto", "erofs", "dirs")), default="auto", show_default=True,
              help="Mount the image as it is stored, or unpack its layers to directories.")  # fmt: skip
@click.option("-o", "options", metavar="OPTION,...", multiple=True,
              help="suid, dev, noexec, ro; nosuid and nodev hold unless lifted. For FUSE: pyfuse3.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print the target alone, also when the container's name was made up.")
@click.option("--format", "form", type=FormatType(), help="json, jsonl or a Go template; table for the list.")
@no_trunc_option
@noheading_option
@click.pass_context
def command(
    context: click.Context,
    image: str | None,
    target: str | None,
    name: str | None,
    options: tuple[str, ...],
    form: Format | None,
    *,
    read_only: bool,
    backend: str,
    lower: str,
    quiet: bool,
    no_trunc: bool,
    noheading: bool,
) -> None:
    """Mount an image at TARGET, an existing directory, with a writable layer on top: a container.

    Without TARGET a directory is made. Prints the target. When the container's name was made up, a second line has
    it: { read -r target; read -r name; } < <(layerfs mount debian)

    An existing container needs no image: layerfs mount --name NAME [TARGET], where a TARGET begins with / or a dot.

    Without arguments mounts are listed. Fields of templates: .Target .Image .ImageID .Container .Backend .ReadOnly
    .CreatedAt .CreatedSince .ID
    """
    from layerfs.errors import NotFound

    if name is not None and target is None and image is not None and image.startswith(("/", ".")):
        image, target = None, image
    flags, read_only = _options(context, options, read_only=read_only)
    if flags.pyfuse3:
        if backend == "overlay":
            raise click.UsageError("-o pyfuse3 is for the fuse backend", context)
        backend = "fuse"
    if image is None and name is None:
        if options or read_only:
            raise click.UsageError("missing argument IMAGE", context)
        with settings_of(context).open_store() as store:
            mounts = store.mounts()
        rows = [_row(mount, no_trunc=no_trunc) for mount in mounts]
        listing = form or Format("table")
        print_listing(listing, _COLUMNS, rows, [_document(mount) for mount in mounts], heading=not noheading)
        return
    with settings_of(context).open_store() as store:
        try:
            mounted = store.mount(
                image, target, name=name, read_only=read_only, backend=backend, lower=lower, options=flags
            )
        except NotFound as error:
            if error.kind == "image" and name is not None and target is None:
                error.hint = f"Write ./{image} if a directory is meant."
            raise
        # Nobody would know the mount when its name cannot be printed.
        try:
            _print(mounted, form, with_name=name is None and not quiet, no_trunc=no_trunc)
            flush()
        except BaseException:
            store.umount(mounted.id)
            if name is None and mounted.container is not None:
                store.remove_container(mounted.container)
            raise


def _print(mounted: Mount, form: Format | None, *, with_name: bool, no_trunc: bool) -> None:
    if form is not None and form.template is not None:
        write(form.template.render(_row(mounted, no_trunc=no_trunc)) + "\n")
    elif form is not None and form.kind == "json":
        print_document(_document(mounted))
    elif form is not None and form.kind == "jsonl":
        write(as_json(_document(mounted)) + "\n")
    else:
        write(f"{mounted.target}\n")
        if with_name and mounted.container is not None:
            write(f"{mounted.container}\n")


def _options(context: click.Context, words: tuple[str, ...], *, read_only: bool) -> tuple[MountOptions, bool]:
    from layerfs.mount.option import MountOptions

    chosen: dict[str, bool] = {"read_only": read_only}
    for word in ",".join(words).split(",") if words else ():
        if word not in _OPTIONS:
            raise click.UsageError(f"unknown mount option {word!r}: use some of {', '.join(_OPTIONS)}", context)
        key, value = _OPTIONS[word]
        chosen[key] = value
    read_only = chosen.pop("read_only")
    return MountOptions(**chosen), read_only  # type: ignore[arg-type]


def _row(mount: Mount, *, no_trunc: bool) -> dict[str, object]:
    return {
        "ID": mount.id,
        "Target": mount.target,
        "Image": mount.image_name or (str(mount.image_id) if no_trunc else mount.image_id.short),
        "ImageID": str(mount.image_id) if no_trunc else mount.image_id.short,
        "Container": mount.container or "",
        "Backend": mount.backend,
        "ReadOnly": mount.read_only,
        "CreatedAt": rfc3339(mount.created) or "",
        "CreatedSince": human_age(mount.created),
    }


def _document(mount: Mount) -> dict[str, object]:
    return {
        "id": mount.id,
        "mountpoint": mount.target,
        "image": mount.image_name,
        "image_id": str(mount.image_id),
        "container": mount.container,
        "backend": mount.backend,
        "read_only": mount.read_only,
        "created": rfc3339(mount.created),
        "pid": mount.pid,
    }
