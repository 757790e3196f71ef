"""Which entry of an index is the image for a platform, also where the index does not say what its entries are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerfs.errors import FormatError, IntegrityError, LimitExceeded, NotFound
from layerfs.formats.digest import Digest
from layerfs.formats.oci import Descriptor, ImageConfig, Manifest, parse_manifest_or_index
from layerfs.formats.platform import Platform

__all__ = ["MAX_IMAGES", "MAX_NESTING", "choose_entry", "require_platform"]

#: How deep indexes lie inside an index, in archives and on registries; builders make one level.
MAX_NESTING = 4

#: Images of one index or archive.
MAX_IMAGES = 1000

#: Documents that are looked into for one choice; on a registry each is a request.
_MAX_LOOKS = 100


def choose_entry(entries: Sequence[Descriptor], wanted: Platform, read: Callable[[Descriptor], bytes]) -> Descriptor:
    """Return the entry that fits a platform best.

    Entries that name no platform are looked into: manifests have it in their configs, indexes in their entries. A
    single one is taken as it is.

    Args:
        entries: those of an index that can be images.
        wanted: the platform.
        read: returns the bytes of a manifest, an index or a config, verified.

    Raises:
        NotFound: none fits; the hint lists the platforms that there are.
        LimitExceeded: too many would have to be looked into.
        LayerfsError: what ``read`` raises, but for documents that are missing or damaged.
    """
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    look = _Look(wanted, read)
    return entries[wanted.select([look.platform(entry, 0) for entry in entries])]


def require_platform(wanted: Platform, found: Platform) -> None:
    """Refuse an image that is for another platform than the one that was asked for.

    Raises:
        NotFound: it is for another one, which the hint names.
    """
    if not wanted.matches(found):
        raise NotFound("platform of the image", str(wanted), hint=f"There is: {found}.")


class _Look:
    """Finds out what entries are for, each document once."""

    def __init__(self, wanted: Platform, read: Callable[[Descriptor], bytes]) -> None:
        self._wanted = wanted
        self._read = read
        self._known: dict[Digest, Platform | None] = {}

    def platform(self, entry: Descriptor, depth: int) -> Platform | None:
        """Return what an entry is for, None if that cannot be found out; of an index, what fits best."""
        if entry.platform is not None or depth > MAX_NESTING:
            return entry.platform
        if entry.digest not in self._known:
            if len(self._known) >= _MAX_LOOKS:
                raise LimitExceeded(f"index has more than {_MAX_LOOKS} entries that name no platform")
            self._known[entry.digest] = None
            self._known[entry.digest] = self._inside(entry, depth)
        return self._known[entry.digest]

    def _inside(self, entry: Descriptor, depth: int) -> Platform | None:
        try:
            document = parse_manifest_or_index(self._read(entry), algorithm=entry.digest.algorithm)
            if isinstance(document, Manifest):
                config = self._read(document.config)
                found = ImageConfig.parse(config, algorithm=document.config.digest.algorithm).platform
                return None if found.is_unknown else found
        except (NotFound, FormatError, IntegrityError):
            return None  # it may not be the one that is wanted
        platforms = [self.platform(inner, depth + 1) for inner in document.images]
        try:
            return platforms[self._wanted.select(platforms)]
        except NotFound:
            return next((platform for platform in platforms if platform is not None), None)
