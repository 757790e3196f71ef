"""``layerfs images``: which images there are."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import click

from layerfs.errors import InvalidReference
from layerfs_cli.argument import image_argument, no_trunc_option, noheading_option
from layerfs_cli.output import Column, Format, format_option, print_listing, write
from layerfs_cli.program import verb
from layerfs_cli.settings import settings_of
from layerfs_cli.text import human_age, human_size, rfc3339

if TYPE_CHECKING:
    from layerfs.api import Image, Store

__all__ = ["command"]

_COLUMNS: Final = (
    Column("REPOSITORY", "Repository"),
    Column("TAG", "Tag"),
    Column("DIGEST", "Digest"),
    Column("IMAGE ID", "ID"),
    Column("CREATED", "CreatedSince"),
    Column("SIZE", "Size"),
)
_FILTERS: Final = ("reference", "dangling", "label", "before", "since")
_REFERENCE: Final = "reference="
_NONE: Final = "<none>"
#: What makes a name a pattern.
_SPECIAL: Final = frozenset("*?[")


@verb("images", short_help="List images.")
@image_argument("name", "[NAME]", required=False)
@click.option("-q", "--quiet", is_flag=True, help="Print image IDs alone, each once.")
@click.option("--digests", is_flag=True, help="Show the digest of the manifest.")
@click.option(
    "-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True,
    help="reference=PATTERN, dangling=true, label=KEY[=VALUE], before=IMAGE, since=IMAGE; all must hold.",
)  # fmt: skip
@click.option("--sort", type=click.Choice(("created", "id", "repository", "size", "tag")), default="created",
              show_default=True, help="Newest or largest first, names and IDs ascending.")  # fmt: skip
@no_trunc_option
@noheading_option
@format_option()
@click.pass_context
def command(
    context: click.Context,
    name: str | None,
    filters: tuple[str, ...],
    sort: str,
    form: Format,
    *,
    quiet: bool,
    digests: bool,
    no_trunc: bool,
    noheading: bool,
) -> None:
    """List images, one line per name; NAME lists those of one repository, or one name, or what a pattern fits.

    In patterns * fits slashes too. SIZE is that of the uncompressed layers; what they take on disk is shown by df.
    Fields of templates: .ID .Repository .Tag .Digest .CreatedAt .CreatedSince .Size .Layers .Platform
    """
    settings = settings_of(context)
    with settings.open_store() as store:
        tests = [_filter(context, store, text) for text in filters if not text.startswith(_REFERENCE)]
        names = [_fits(text.removeprefix(_REFERENCE)) for text in filters if text.startswith(_REFERENCE)]
        if name is not None and "@" in name:
            tests.append(_of_digest(store, name))
        elif name is not None:
            names.append(_named(name))
        shown = {
            image: fitting
            for image in store.images()
            if (fitting := _fitting(image, names)) and all(test(image) for test in tests)
        }
    found = list(shown)
    for image in found:
        if image.damage is not None:
            settings.log("warning", f"image {image.id.short}: {image.damage}; load it again to mend it")
    if sort == "size":
        found.sort(key=lambda image: -image.size)
    elif sort == "id":
        found.sort(key=lambda image: image.id)
    else:
        found.sort(key=lambda image: -(image.created or 0))
    if quiet:
        write("".join(f"{image.id if no_trunc else image.id.short}\n" for image in found))
        return
    rows = [row for image in found for row in _rows(image, shown[image], no_trunc=no_trunc)]
    if sort in {"repository", "tag"}:
        rows.sort(key=lambda row: row[sort.capitalize()])
    columns = [column for column in _COLUMNS if digests or column.field != "Digest"]
    print_listing(form, columns, rows, [_document(image) for image in found], heading=not noheading)


def _of_digest(store: Store, name: str) -> Callable[[Image], bool]:
    """Return a test for the image that ``NAME@DIGEST`` means."""
    from layerfs.errors import NotFound

    try:
        wanted = store.resolve(name).id
    except NotFound:
        return lambda _image: False
    return lambda image: image.id == wanted


def _fitting(image: Image, tests: Sequence[Callable[[str], bool]]) -> list[str]:
    """Return the names by which an image is listed; none if it has none that all tests want."""
    # An image that was pulled by its digest has a repository and no tag, as with docker.
    untagged = [f"{repository}:{_NONE}" for repository in image.repositories]
    if not tests:
        return list(image.names) or untagged or [f"{_NONE}:{_NONE}"]
    return [name for name in image.names if all(test(name) for test in tests)] or [
        name for name in untagged if all(test(name) for test in tests)
    ]


def _rows(image: Image, names: Sequence[str], *, no_trunc: bool) -> list[dict[str, str]]:
    rows = []
    digests = dict(zip(image.names, image.name_manifests, strict=True))
    for name in names:
        repository, _, tag = name.rpartition(":")
        rows.append(
            {
                "ID": str(image.id) if no_trunc else image.id.short,
                "Repository": repository,
                "Tag": tag,
                "Digest": str(digests.get(name, image.manifest_digest)),
                "CreatedAt": rfc3339(image.created) or "",
                "CreatedSince": human_age(image.created),
                "Size": human_size(image.size),
                "Layers": str(image.layers),
                "Platform": str(image.platform),
            }
        )
    return rows


def _document(image: Image) -> dict[str, object]:
    return {
        "Id": str(image.id),
        "RepoTags": list(image.names),
        "RepoDigests": list(image.repo_digests),
        "Digest": str(image.manifest_digest),
        "Created": rfc3339(image.created),
        "Size": image.size,
        "Architecture": image.platform.architecture,
        "Os": image.platform.os,
        "Variant": image.platform.variant,
        "chain_id": str(image.chain_id),
        "layers": image.layers,
    }


def _named(text: str) -> Callable[[str], bool]:
    """Return a test of a name: for a repository, a name with its tag, or a pattern of either."""
    from layerfs.store.image import possible_names

    if not _SPECIAL.isdisjoint(text):
        return lambda name: _matches(name, text)
    wanted = {str(name) for name in possible_names(text)}
    return lambda name: not wanted.isdisjoint((name, name.rpartition(":")[0]))


def _fits(text: str) -> Callable[[str], bool]:
    """As :func:`_named`, for a filter: what can be no name is a pattern that nothing fits."""
    try:
        return _named(text)
    except InvalidReference:
        return lambda _name: False


def _filter(context: click.Context, store: Store, text: str) -> Callable[[Image], bool]:
    key, mark, value = text.partition("=")
    if not mark or key not in _FILTERS:
        raise click.UsageError(f"unknown filter {text!r}: use one of {', '.join(_FILTERS)}", context)
    if key == "dangling":
        if value not in {"true", "false"}:
            raise click.UsageError("the filter dangling is true or false", context)
        return lambda image: (not image.names) == (value == "true")
    if key == "label":
        label, has_value, wanted = value.partition("=")
        return lambda image: _has_label(store, image, label, wanted if has_value else None)
    other = store.resolve(value)
    moment = other.created or 0
    if key == "before":
        return lambda image: image.id != other.id and (image.created or 0) < moment
    return lambda image: image.id != other.id and (image.created or 0) > moment


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name as users write it or in full, with or without its tag."""
    from layerfs.formats.reference import Reference

    pattern = pattern.replace("[^", "[!")  # as docker's users negate
    repository, _, tag = name.rpartition(":")
    forms = (name, f"{Reference.parse(repository).familiar}:{tag}")
    return any(fnmatch.fnmatchcase(text, pattern) for form in forms for text in (form, form.rpartition(":")[0]))


def _has_label(store: Store, image: Image, label: str, value: str | None) -> bool:
    if image.damage is not None:
        return False  # the warning that its config cannot be read says the rest
    labels = store.config(image).config.get("Labels")
    return isinstance(labels, dict) and label in labels and (value is None or labels[label] == value)
