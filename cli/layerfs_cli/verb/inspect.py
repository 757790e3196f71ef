"""``layerfs inspect``: all that is known about images and containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import click

from layerfs_cli.argument import images_argument, is_given
from layerfs_cli.output import Format, FormatType, as_json, print_document, write
from layerfs_cli.program import verb
from layerfs_cli.registry_option import access_of, registry_options
from layerfs_cli.settings import settings_of
from layerfs_cli.text import rfc3339

if TYPE_CHECKING:
    from layerfs.api import Container, Image, Store
    from layerfs.formats.platform import Platform
    from layerfs.registry.access import Access

__all__ = ["command"]

_REGISTRY: Final = "docker://"


@verb("inspect", short_help="Show images and containers as JSON.")
@images_argument("NAME...")
@click.option("--config", "as_config", is_flag=True, help="Print the image's config instead.")
@click.option("--raw", is_flag=True, help="Print the manifest, or with --config the config, byte for byte.")
@click.option(
    "-f", "--format", "form", type=FormatType(), default="json", show_default=True,
    help="json, jsonl, or a Go template such as '{{.Config.Env}}'.",
)  # fmt: skip
@click.option(
    "--platform", metavar="OS[/ARCH[/VARIANT]]", envvar="DOCKER_DEFAULT_PLATFORM", show_envvar=True,
    help="With docker://, which image of an index for several platforms.  [default: this machine's]",
)  # fmt: skip
@registry_options
@click.pass_context
def command(
    context: click.Context,
    /,
    names: tuple[str, ...],
    form: Format,
    platform: str | None,
    *,
    as_config: bool,
    raw: bool,
    **options: Any,
) -> None:
    """Show images, and containers by name, as a JSON array.

    A name that both an image and a container have means the image. With docker:// before it, NAME is an image on a
    registry, described in the words of skopeo inspect; the tags beside it are listed by layerfs tags. --raw prints its
    manifest or index, --raw --config its config.
    """
    if raw and len(names) > 1:
        raise click.UsageError("--raw prints one document, so it takes one name", context)
    if is_given(context, "platform") and not all(name.startswith(_REGISTRY) for name in names):
        raise click.UsageError("--platform is for names with docker:// before them", context)
    documents: list[object] = []
    with ExitStack() as stack:
        # Each only if a name needs it: who asks a registry may have no store.
        store = cache(lambda: stack.enter_context(settings_of(context).open_store()))
        access = cache(lambda: access_of(options))
        for name in names:
            if name.startswith(_REGISTRY):
                remote = name.removeprefix(_REGISTRY)
                if raw:
                    write(_remote_raw(remote, access(), platform, as_config=as_config))
                    return
                documents.append(_describe_remote(remote, access(), platform, as_config=as_config))
                continue
            with _in_store(context, name):
                if raw:
                    write(store().config(name).raw if as_config else store().document(name))
                    return
                documents.append(_config(store(), name) if as_config else _describe(store(), name))
    if form.template is not None:
        write("".join(f"{form.template.render(document)}\n" for document in documents))
    elif form.kind == "jsonl":
        write("".join(f"{as_json(document)}\n" for document in documents))
    else:
        print_document(documents[0] if as_config and len(documents) == 1 else documents)


@contextmanager
def _in_store(context: click.Context, name: str) -> Iterator[None]:
    """Say of a place that is not the store that nobody looks there."""
    from layerfs.errors import InvalidReference, NotFound

    try:
        yield
    except (NotFound, InvalidReference):
        if name.startswith(("oci:", "oci-archive:", "docker-archive:", "dir:")):
            raise click.UsageError(
                f"{name} is not in the store, and only that and registries can be looked into", context
            ) from None
        raise


def _remote_raw(name: str, access: Access, platform: str | None, *, as_config: bool) -> bytes:
    from layerfs.registry.query import fetch_config, fetch_manifest

    return fetch_config(access, name, _platform(platform)) if as_config else fetch_manifest(access, name)


def _platform(text: str | None) -> Platform:
    from layerfs.formats.platform import Platform

    return Platform.host() if text is None else Platform.parse(text)


def _describe_remote(name: str, access: Access, platform: str | None, *, as_config: bool) -> object:
    import json

    from layerfs.registry.query import fetch_image

    found = fetch_image(access, name, _platform(platform))
    if as_config:
        return json.loads(found.config.raw)
    config, layers = found.config, found.manifest.layers
    return {
        "Name": found.repository,
        "Digest": str(found.digest),
        "Created": rfc3339(config.created),
        "Labels": config.config.get("Labels"),
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant,
        "Os": config.platform.os,
        "Layers": [str(layer.digest) for layer in layers],
        "LayersData": [
            {"MIMEType": layer.media_type, "Digest": str(layer.digest), "Size": layer.size} for layer in layers
        ],
        "Env": config.config.get("Env"),
    }


def _config(store: Store, name: str) -> object:
    import json

    return json.loads(store.config(name).raw)


def _describe(store: Store, name: str) -> dict[str, object]:
    from layerfs.errors import InvalidReference, NotFound

    try:
        return _image(store, store.resolve(name))
    except (NotFound, InvalidReference):
        with suppress(NotFound):
            return _container(store.container(name))
        raise


def _image(store: Store, image: Image) -> dict[str, object]:
    config, manifest = store.config(image), store.manifest(image)
    return {
        "Id": str(image.id),
        "Digest": str(image.manifest_digest),
        "RepoTags": list(image.names),
        "RepoDigests": list(image.repo_digests),
        "Created": rfc3339(image.created),
        "Author": config.author,
        "Architecture": image.platform.architecture,
        "Variant": image.platform.variant,
        "Os": image.platform.os,
        "Size": image.size,
        "Config": dict(config.config),
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in config.diff_ids]},
        "Labels": config.config.get("Labels"),
        "Annotations": dict(manifest.annotations),
        "ManifestType": manifest.media_type,
        "History": [
            {
                "created": rfc3339(step.created),
                "created_by": step.created_by,
                "author": step.author,
                "comment": step.comment,
                "empty_layer": step.empty_layer,
            }
            for step in config.history
        ],
        "chain_id": str(image.chain_id),
        "containers": [container.name for container in store.containers() if container.image_id == image.id],
    }


def _container(container: Container) -> dict[str, object]:
    return {
        "Id": container.id,
        "Name": container.name,
        "Image": str(container.image_id),
        "ImageName": container.image_name,
        "Created": rfc3339(container.created),
        "mountpoint": container.target,
    }
