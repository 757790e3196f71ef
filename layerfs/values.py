"""What :class:`layerfs.api.Store` returns: immutable values.

Digests are full, times are nanoseconds since the epoch. (Inodes of a tree have seconds, and the rest apart.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layerfs.formats.digest import Digest
from layerfs.formats.platform import Platform
from layerfs.formats.reference import Reference

if TYPE_CHECKING:
    from layerfs.mount.choose import BackendStatus

__all__ = ["Container", "HistoryRow", "Image", "Info", "Layer", "Mount", "PushedImage", "RemovedImage"]


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store.

    Attributes:
        id: digest of its config: the image ID.
        manifest_digest: digest of its manifest: the one of the name or digest by which it was found, else the one that
            it came with last.
        names: canonical references that mean it, sorted.
        chain_id: names its merged tree.
        platform: what it was built for.
        created: nanoseconds since the epoch, by its config; None when that does not say.
        size: bytes of its uncompressed layers.
        layers: how many.
        damage: what is wrong with its config, which then tells neither platform nor time; None for a whole image.
        origins: what it was pulled as, ``repository@digest`` each, sorted.
        name_manifests: digest of the manifest that each name was given with, in the order of ``names``.
        given: those of its names that the load or pull which returned it has set, in the order of its source.
    """

    id: Digest
    manifest_digest: Digest
    names: tuple[str, ...]
    chain_id: Digest
    platform: Platform
    created: int | None
    size: int
    layers: int
    damage: str | None = None
    origins: tuple[str, ...] = ()
    name_manifests: tuple[Digest, ...] = ()
    given: tuple[str, ...] = field(default=(), compare=False)

    @property
    def repo_digests(self) -> tuple[str, ...]:
        """``repository@digest`` for each manifest that it has a name for, and for what it was pulled as, sorted."""
        named = zip(self.names, self.name_manifests, strict=True)
        own = {f"{name.rpartition(':')[0]}@{digest}" for name, digest in named}
        return tuple(sorted(own.union(self.origins)))

    @property
    def repositories(self) -> tuple[str, ...]:
        """The repositories that it has a name in or was pulled from, sorted."""
        named = {name.rpartition(":")[0] for name in self.names}
        return tuple(sorted(named | {origin.partition("@")[0] for origin in self.origins}))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image: ``size`` of its tar, ``shared_size`` bytes of it that lie elsewhere, members, its command.

    ``images`` counts the images that have this layer.
    """

    diff_id: Digest
    size: int
    shared_size: int
    entries: int
    command: str | None
    images: int


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One step in the making of an image; ``size`` and ``diff_id`` are of the layer it made, if it made one."""

    created: int | None
    created_by: str
    comment: str
    size: int
    diff_id: Digest | None


@dataclass(frozen=True, slots=True)
class Container:
    """A writable layer on an image.

    ``target`` is where it is mounted, or None; ``dead`` whether the process that served it there has ended, so that
    everything in it answers ENOTCONN until it is unmounted or mounted again.
    """

    id: str
    name: str
    image_id: Digest
    image_name: str | None
    created: int
    target: str | None
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount that layerfs made.

    ``hidden`` is one that this process cannot see: in another container that shares the store, perhaps a killed one.
    """

    id: str
    target: str
    image_id: Digest
    image_name: str | None
    container: str | None
    backend: str
    read_only: bool
    created: int
    pid: int | None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class PushedImage:
    """What a push put on a registry: the name, and the digest of the manifest that it means there."""

    reference: Reference
    manifest_digest: Digest


@dataclass(frozen=True, slots=True)
class RemovedImage:
    """What removing an image did: names it lost, and images that are gone (none while other names are left)."""

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Info:
    """What this store and this machine are: paths, format, counts, and which backends are usable."""

    root: str
    runroot: str
    format_version: int
    images: int
    layers: int
    containers: int
    backends: tuple[BackendStatus, ...]
