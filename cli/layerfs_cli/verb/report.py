"""``layerfs report``: where the bytes of an image are, for people, programs and CI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from layerfs_cli.argument import image_argument
from layerfs_cli.output import print_document, refuse_terminal, write, write_to
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_size, printable, shorten

if TYPE_CHECKING:
    from layerfs.api import Image, Store
    from layerfs.changeset.analysis import Block, FileReport, ImageReport

__all__ = ["command"]

_WIDTH = 60
_ROWS = 10


@verb("report", short_help="Show where the bytes of an image are.")
@image_argument(metavar="[IMAGE]", required=False)
@click.option("-o", "--output", metavar="FILE.html", type=click.Path(dir_okay=False, allow_dash=True),
              help="Write a page with a treemap, in one file that opens offline; - for standard output.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="What is printed.")  # fmt: skip
@click.option("--ci", is_flag=True, help="Print which limits hold, and exit with 1 if one does not.")
@click.option("--lowest-efficiency", metavar="RATIO", type=click.FloatRange(0, 1), default=0.9, show_default=True,
              help="With --ci: at least this efficiency.")  # fmt: skip
@click.option("--highest-wasted-bytes", metavar="SIZE", default="",
              help="With --ci: at most so many wasted bytes, such as 20MB.")  # fmt: skip
@click.option("--highest-user-wasted-percent", metavar="RATIO", type=click.FloatRange(0, 1), default=0.1,
              show_default=True, help="With --ci: at most this part of all layers but the lowest.")  # fmt: skip
@click.pass_context
def command(
    context: click.Context,
    image: str | None,
    output: str | None,
    form: str,
    lowest_efficiency: float,
    highest_wasted_bytes: str,
    highest_user_wasted_percent: float,
    *,
    ci: bool,
) -> None:
    """Show what the layers of an image add, change and hide, and what of it is wasted: stored, and hidden again.

    The efficiency is dive's: the smallest size that each path ever has, in all, divided by all sizes that it has.
    Without IMAGE: how much each image of the store shares with others.
    """
    limit = _size(context, highest_wasted_bytes) if highest_wasted_bytes else None
    for name in ("lowest_efficiency", "highest_wasted_bytes", "highest_user_wasted_percent"):
        if not ci and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is a limit for --ci", context)
    if form == "json" and (ci or output is not None):
        raise click.UsageError("--format json is what is printed without --ci and -o", context)
    if output == "-":
        refuse_terminal(context)
    if image is None and (output is not None or ci):
        raise click.UsageError("name an image", context)
    settings = settings_of(context)
    with settings.open_store() as store:
        if image is None:
            _print_images(_images(store), form)
            return
        found = store.resolve(image)
        report = store.analyze(found)
        document = _document(store, found, report)
    if output is not None:
        from layerfs_cli.report_page import report_page

        write_to(output, [report_page(document).encode()], sync=False)
    if ci:
        failed = _check(report, lowest_efficiency, limit, highest_user_wasted_percent, err=output == "-")
        context.exit(1 if failed else 0)
    if output is not None:
        return
    if form == "json":
        del document["picture"]
        print_document(document)
    else:
        _print_text(document, report)


def _document(store: Store, image: Image, report: ImageReport) -> dict[str, Any]:
    layers = [
        {
            "diff_id": str(layer.diff_id), "command": layer.command, "size": layer.size, "images": layer.images,
            "bytes": row.bytes, "added": row.added, "changed": row.changed, "hidden": row.hidden,
            "hides_bytes": row.hides_bytes, "wasted": row.wasted,
        }
        for layer, row in zip(store.layers(image), report.layers, strict=True)
    ]  # fmt: skip
    return {
        "name": image.names[0] if image.names else image.id.short,
        "id": str(image.id),
        "stored": report.stored,
        "visible": report.visible,
        "wasted": report.wasted,
        "efficiency": round(report.efficiency, 6),
        "user_wasted": round(report.user_wasted, 6),
        "layers": layers,
        "repeated": [_file(row) for row in report.repeated],
        "largest": [_file(row) for row in report.largest],
        "images": _images(store),
        "picture": _block(report.picture),
    }


def _file(row: FileReport) -> dict[str, Any]:
    return {"path": _text(row.path), "size": row.size, "layers": list(row.layers)}


def _block(block: Block) -> dict[str, Any]:
    """Return a picture for the page; its depth is that of paths, so no recursion."""
    made: dict[str, Any] = {}
    todo = [(block, made)]
    while todo:
        source, target = todo.pop()
        children: list[dict[str, Any]] = [{} for _ in source.children]
        target |= {
            "name": _text(source.name), "size": source.size, "wasted": source.wasted, "layer": source.layer,
            "children": children,
        }  # fmt: skip
        todo += zip(source.children, children, strict=True)
    return made


def _text(name: bytes) -> str:
    return printable(name.decode("utf-8", "surrogateescape"))


def _images(store: Store) -> list[dict[str, Any]]:
    usage = {row.id: row for row in store.usage().images}
    return [
        {
            "name": image.names[0] if image.names else image.id.short, "id": str(image.id), "size": row.size,
            "shared": row.shared, "unique": row.unique,
        }
        for image in store.images()
        if (row := usage.get(image.id)) is not None
    ]  # fmt: skip


def _print_images(images: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        print_document(images)
        return
    write(f"{'SIZE':>8} {'SHARED':>8} {'OWN':>8}  IMAGE\n")
    for row in images:
        sizes = " ".join(f"{human_size(row[key]):>8}" for key in ("size", "shared", "unique"))
        write(f"{sizes}  {printable(row['name'])}\n")


def _print_text(document: dict[str, Any], report: ImageReport) -> None:
    write(f"{printable(document['name'])}  {document['id']}\n\n")
    write(
        f"efficiency {report.efficiency:.1%}, {human_size(report.wasted)} wasted of {human_size(report.stored)} in"
        f" files, {human_size(report.visible)} visible\n\n"
    )
    heads = f"{'#':>2} {'SIZE':>8} {'ADDED':>6} {'CHANGED':>7} {'HIDES':>6} {'WASTED':>8} {'IMAGES':>6}  CREATED BY"
    write(heads + "\n")
    for number, layer in enumerate(document["layers"]):
        text = shorten(" ".join((layer["command"] or "").split()), _WIDTH)
        write(
            f"{number:>2} {human_size(layer['size']):>8} {layer['added']:>6} {layer['changed']:>7}"
            f" {layer['hidden']:>6} {human_size(layer['wasted']):>8} {layer['images']:>6}  {printable(text)}\n"
        )
    for title, key in (("wasted, by path", "repeated"), ("largest files", "largest")):
        rows = document[key][:_ROWS]
        write(f"\n{title}\n")
        for row in rows:
            layers = ",".join(map(str, row["layers"]))
            write(f"{human_size(row['size']):>8}  {row['path']}  (layer {layers})\n")
        if not rows:
            write("  none\n")


def _check(report: ImageReport, efficiency: float, wasted: int | None, percent: float, *, err: bool) -> bool:
    """Print which limits hold, to standard error if the page goes to standard output; return whether one does not."""
    # As precise as JSON says them, so that a limit may be what was read there.
    seen, user_wasted = round(report.efficiency, 6), round(report.user_wasted, 6)
    rows = [
        ("efficiency", f"{seen:.6g}", f"at least {efficiency:g}", seen >= efficiency),
        ("user wasted", f"{user_wasted:.6g}", f"at most {percent:g}", user_wasted <= percent),
    ]
    if wasted is not None:
        held = report.wasted <= wasted
        rows.insert(1, ("wasted bytes", human_size(report.wasted), f"at most {human_size(wasted)}", held))
    for name, value, limit, held in rows:
        line = f"{'PASS' if held else 'FAIL'}  {name}: {value} ({limit})\n"
        if err:
            click.echo(line, nl=False, err=True)
        else:
            write(line)
    return not all(row[3] for row in rows)


def _size(context: click.Context, text: str) -> int:
    """Return a size that a user wrote: 20MB, 512m, 1MiB, 1000."""
    units = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9,
             "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
    digits = text.strip().rstrip("bBkKmMgGiI")
    unit = text.strip()[len(digits) :].lower()
    try:
        size = int(float(digits) * units[unit])
        if size >= 0:
            return size
    except (ValueError, KeyError, OverflowError):
        pass
    raise click.UsageError(f"{text!r} is no size: write 20MB, 512m or 1000000", context)
