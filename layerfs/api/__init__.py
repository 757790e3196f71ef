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
    from layerfs.values import Container, HistoryRow, Image, Info, Layer, Mount, PushedImage, RemovedImage

__all__ = [
    "AsyncStore", "Container", "HistoryRow", "Image", "Info", "Layer", "Mount", "PushedImage", "RemovedImage", "Store",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import the values that are returned when somebody names one: what returns none starts 7 ms sooner."""
    if name == "AsyncStore":
        from layerfs.api.async_store import AsyncStore  # who does not use trio need not have it

        return AsyncStore
    if name in __all__:
        from layerfs import values

        return getattr(values, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Store(TransferPart, ImagePart, ContainerPart, ChangePart, OutgoingPart, UpkeepPart):
    """A store of images. A context manager; thread-safe.

    After :func:`os.fork` both processes may go on with it, if no other thread was writing at that moment.
    """
