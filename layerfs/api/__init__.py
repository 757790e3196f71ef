"""The porcelain: :class:`Store` is what programs and the command line use; everything below is how it does it.

A store is a directory. It may be used by any number of processes and threads at once. Nothing here reads the
environment or prints. The class has one part per module of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerfs.api.changes import ChangePart
from layerfs.api.containers import ContainerPart
from layerfs.api.images import ImagePart
from layerfs.api.outgoing import OutgoingPart
from layerfs.api.transfer import TransferPart
from layerfs.api.upkeep import UpkeepPart

if TYPE_CHECKING:
    from layerfs.api.async_store import AsyncStore
    from layerfs.api.copying import copy
    from layerfs.mount.option import MountOptions
    from layerfs.registry.access import Access
    from layerfs.registry.loader import Progress
    from layerfs.values import Container, HistoryRow, Image, Info, Layer, Mount, PushedImage, RemovedImage

__all__ = [
    "Access", "AsyncStore", "Container", "HistoryRow", "Image", "Info", "Layer", "Mount", "MountOptions", "Progress",
    "PushedImage", "RemovedImage", "Store", "copy",
]  # fmt: skip

#: Where that is from what is imported when somebody names it: who uses no trio need not have it, and a start without
#: the values that are returned takes 7 ms less.
_LATER = {
    "Access": "layerfs.registry.access",
    "AsyncStore": "layerfs.api.async_store",
    "MountOptions": "layerfs.mount.option",
    "Progress": "layerfs.registry.loader",
    "copy": "layerfs.api.copying",
}


def __getattr__(name: str) -> object:
    """Import something when it is named."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER.get(name, "layerfs.values")), name)


class Store(TransferPart, ImagePart, ContainerPart, ChangePart, OutgoingPart, UpkeepPart):
    """A store of images. A context manager; thread-safe.

    After :func:`os.fork` both processes may go on with it, if no other thread was writing at that moment.
    """
