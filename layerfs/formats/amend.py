"""Making the documents of a new image from those of an old one: config and manifest.

What layerfs does not know in a config survives. The documents are pure functions of their arguments, written without
spaces, members in the order of the old document.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from layerfs.errors import InvalidReference
from layerfs.formats.digest import Digest
from layerfs.formats.document import JsonObject, format_timestamp
from layerfs.formats.media_type import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
)
from layerfs.formats.oci import Descriptor, ImageConfig
from layerfs.formats.oci_form import as_oci
from layerfs.formats.platform import Platform

__all__ = [
    "INSTRUCTIONS",
    "amend_settings",
    "history_step",
    "layer_type",
    "make_manifest",
    "new_config",
    "with_blobs",
    "with_layers",
]

#: Dockerfile instructions that change a config and nothing else.
INSTRUCTIONS = (
    "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip

#: Members of docker's configs that speak of the container which an image was made from.
_OF_THE_CONTAINER = ("container", "container_config", "id", "parent", "parent_id", "layer_id", "throwaway")


_OCI_LAYERS = {"none": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}
_DOCKER_LAYERS = {"none": DOCKER_LAYER, "gzip": DOCKER_LAYER_GZIP, "zstd": DOCKER_LAYER_ZSTD}


def layer_type(compression: str, *, docker: bool = False) -> str:
    """Return the media type of a layer that is compressed like this: ``none``, ``gzip`` or ``zstd``.

    Args:
        compression: one of the three.
        docker: for a manifest in docker's form.
    """
    return (_DOCKER_LAYERS if docker else _OCI_LAYERS)[compression]


def history_step(
    created: int | None, created_by: str, *, author: str = "", comment: str = "", empty: bool = False
) -> dict[str, Any]:
    """Return one step of a config's history; ``created`` in nanoseconds since the epoch."""
    step: dict[str, Any] = {}
    if created is not None:
        step["created"] = format_timestamp(created)
    step["created_by"] = created_by
    if author:
        step["author"] = author
    if comment:
        step["comment"] = comment
    if empty:
        step["empty_layer"] = True
    return step


def new_config(platform: Platform) -> bytes:
    """Return the config of an image without layers."""
    document: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        document["variant"] = platform.variant
    document |= {"config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []}
    return _dump(document)


def with_layers(
    base: ImageConfig,
    diff_ids: Sequence[Digest],
    history: Sequence[Mapping[str, Any]],
    *,
    created: int | None = None,
    author: str | None = None,
    changes: Iterable[str] = (),
) -> ImageConfig:
    """Return a config with other layers and another history.

    Args:
        base: the old config.
        diff_ids: of all layers, bottom first.
        history: all steps.
        created: nanoseconds since the epoch; None for what the old config says.
        author: None for what the old config says.
        changes: instructions as ``--change`` takes them, see :func:`amend_settings`.

    Raises:
        InvalidReference: an instruction is none, or not one that changes a config.
    """
    document: dict[str, Any] = json.loads(base.raw)
    for member in _OF_THE_CONTAINER:
        document.pop(member, None)
    if created is not None:
        document["created"] = format_timestamp(created)
    if author is not None:
        document["author"] = author
    settings = dict(document.get("config") or {})
    for change in changes:
        amend_settings(settings, change)
    document["config"] = settings
    document["rootfs"] = {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]}
    document["history"] = list(history)
    return ImageConfig.parse(_dump(document), algorithm=base.digest.algorithm)


def make_manifest(
    config: ImageConfig, layers: Sequence[Descriptor], annotations: Mapping[str, str] | None = None
) -> tuple[Digest, bytes]:
    """Return digest and bytes of the manifest of an image."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(config.digest), "size": len(config.raw)},
        "layers": [
            {"mediaType": layer.media_type, "digest": str(layer.digest), "size": layer.size} for layer in layers
        ],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    raw = _dump(document)
    return Digest.of(raw), raw


def with_blobs(raw: bytes, blobs: Mapping[Digest, Descriptor]) -> bytes:
    """Return a manifest some of whose layers are compressed in another way.

    Docker's own form knows no zstd, and podman and skopeo do not read such a manifest: with one it becomes OCI's.

    Args:
        raw: the manifest, of either form and well formed.
        blobs: what its layers are now, by the digest that they have in it; others stay.
    """
    document = json.loads(raw)
    layers = document["layers"]
    for position, layer in enumerate(layers):
        found = blobs.get(Digest.parse(layer["digest"]))
        if found is not None and (str(found.digest), found.media_type) != (layer["digest"], layer["mediaType"]):
            # Annotations of a layer may speak of its compressed bytes, which are others now.
            layers[position] = {"mediaType": found.media_type, "digest": str(found.digest), "size": found.size}
    changed = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    if document.get("mediaType") == DOCKER_MANIFEST and any(
        layer["mediaType"] == DOCKER_LAYER_ZSTD for layer in layers
    ):
        return as_oci(changed)
    return changed


def amend_settings(settings: dict[str, Any], instruction: str) -> None:
    """Let one instruction of a Dockerfile change the settings of a config, such as ``CMD ["sh"]`` or ``ENV A=b``.

    Raises:
        InvalidReference: it is none of :data:`INSTRUCTIONS`, or its argument is malformed.
        FormatError: what it adds to is not of the type that the specification gives it.
    """
    known = JsonObject(settings, "config")
    word, _, rest = instruction.strip().partition(" ")
    word, rest = word.upper(), rest.strip()
    if "=" in word and word.partition("=")[0] in INSTRUCTIONS:
        # podman also takes CMD=... and ENV=...
        word, _, head = instruction.strip().partition("=")
        word, rest = word.upper(), head.strip()
    if word not in INSTRUCTIONS or not rest:
        raise InvalidReference(
            f"{instruction[:80]!r} is no change of an image's config",
            hint=f"Use one of {', '.join(INSTRUCTIONS)}, with its argument.",
        )
    if word in ("CMD", "ENTRYPOINT"):
        settings["Cmd" if word == "CMD" else "Entrypoint"] = _command(rest)
        if word == "ENTRYPOINT":
            settings.pop("Cmd", None)  # what was the command of another program is no argument of this one
    elif word == "ENV":
        pairs = _pairs(rest, instruction)
        kept = [text for text in known.texts("Env") if text.partition("=")[0] not in pairs]
        settings["Env"] = kept + [f"{key}={value}" for key, value in pairs.items()]
    elif word == "LABEL":
        settings["Labels"] = {**known.text_map("Labels"), **_pairs(rest, instruction)}
    elif word == "EXPOSE":
        ports = [port if "/" in port else f"{port}/tcp" for port in _words(rest, instruction)]
        settings["ExposedPorts"] = {**_members(known, "ExposedPorts"), **{port: {} for port in ports}}
    elif word == "VOLUME":
        listed = _json_words(rest)
        paths = listed if listed is not None else _words(rest, instruction)
        settings["Volumes"] = {**_members(known, "Volumes"), **{path: {} for path in paths}}
    elif word == "ONBUILD":
        settings["OnBuild"] = [*known.texts("OnBuild"), rest]
    else:
        settings[{"STOPSIGNAL": "StopSignal", "USER": "User", "WORKDIR": "WorkingDir"}[word]] = rest


def _members(known: JsonObject, key: str) -> Mapping[str, object]:
    """Return the members of an object inside another one, none where it is absent."""
    child = known.optional_child(key)
    return {} if child is None else child.members


def _command(text: str) -> list[str]:
    """Return the words of a command: a JSON array, or a line for the shell."""
    listed = _json_words(text)
    return listed if listed is not None else ["/bin/sh", "-c", text]


def _json_words(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _words(text: str, instruction: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidReference(f"{instruction[:80]!r}: {str(error).lower()}") from error


def _pairs(text: str, instruction: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` words, or the old form with one key, a space and the value."""
    if "=" not in text.split(maxsplit=1)[0]:
        key, _, value = text.partition(" ")
        if not value:
            raise InvalidReference(f"{instruction[:80]!r} gives {key} no value")
        return {key: value.strip()}
    pairs = {}
    for word in _words(text, instruction):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidReference(f"{instruction[:80]!r}: {word!r} is no KEY=VALUE")
        pairs[key] = value
    return pairs


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
