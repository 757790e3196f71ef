"""Which entry of an index is the image for a platform, also where the index does not say what its entries are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerfs.errors import LayerfsError, NotFound
from layerfs.formats.oci import Descriptor, ImageConfig, Manifest, parse_manifest_or_index
from layerfs.formats.platform import Platform

__all__ = ["MAX_NESTING", "choose_entry"]

#: Indexes inside indexes, in archives and on registries; builders make one level.
MAX_NESTING = 4


def choose_entry(entries: Sequence[Descriptor], wanted: Platform, read: Callable[[Descriptor], bytes]) -> Descriptor:
    """Return the entry that fits a platform best; the only one in any case.

    Entries that name no platform are looked into: manifests have it in their configs, indexes in their entries.

    Args:
        entries: those of an index that can be images.
        wanted: the platform.
        read: returns the bytes of a manifest, an index or a config, verified.

    Raises:
        NotFound: none fits; the hint lists the platforms that there are.
    """
    if len(entries) == 1:
        return entries[0]
    return entries[wanted.select([_platform(entry, wanted, read, 0) for entry in entries])]


def _platform(entry: Descriptor, wanted: Platform, read: Callable[[Descriptor], bytes], depth: int) -> Platform | None:
    """Return what an entry is for, None if that cannot be found out; of an index, what fits best."""
    if entry.platform is not None or depth > MAX_NESTING:
        return entry.platform
    try:
        document = parse_manifest_or_index(read(entry), algorithm=entry.digest.algorithm)
        if isinstance(document, Manifest):
            found = ImageConfig.parse(read(document.config), algorithm=document.config.digest.algorithm).platform
            return None if found.is_unknown else found
    except LayerfsError:
        return None  # it may not be the one that is wanted
    platforms = [_platform(inner, wanted, read, depth + 1) for inner in document.images]
    try:
        return platforms[wanted.select(platforms)]
    except NotFound:
        return next((platform for platform in platforms if platform is not None), None)
