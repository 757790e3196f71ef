"""The directories that images are unpacked to, for mounts that stack plain directories."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layerfs.errors import MountError
from layerfs.formats.digest import chain_id
from layerfs.formats.erofs.reader import Tree
from layerfs.mount.overlay import MAX_LOWERS
from layerfs.mount.unpack import is_stackable, unpack
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, image_layers
from layerfs.store.layer import device_paths, open_layer_tree

__all__ = ["unpack_tree", "unpacked_directories"]


def unpacked_directories(
    handle: StoreHandle, image: ImageRecord, tree: Tree, check: Callable[[], None] | None = None
) -> list[str]:
    """Return directories that stacked give an image, top first, unpacked where they are missing.

    Args:
        handle: the store.
        image: the image.
        tree: its merged tree.
        check: polled; what it raises ends the work.

    Raises:
        FormatError: the tree of a layer is damaged.
        IntegrityError: a layer's tar is missing or cut short.
        OSError: ENOSPC, EIO.
    """
    layers = image_layers(handle, image)
    trees = [open_layer_tree(handle, layer.diff_id) for layer in layers]
    if 0 < len(layers) < MAX_LOWERS and is_stackable(trees):
        try:
            return [
                unpack_tree(handle, own, handle.layout.unpacked(layer.diff_id), check)
                for layer, own in zip(layers, trees, strict=True)
            ][::-1]
        except MountError as error:
            if error.errno != errno.EPERM:
                raise
            # On an overlay, which takes no whiteouts; the merged tree has none.
    # Some layers only mean what they mean on top of the others: then the whole image is one directory.
    chain = chain_id([layer.diff_id for layer in layers])
    return [unpack_tree(handle, tree, handle.layout.unpacked_merged(chain), check)]


def unpack_tree(handle: StoreHandle, tree: Tree, path: str, check: Callable[[], None] | None = None) -> str:
    """Unpack a tree of a store to a directory, if that is not there; return the directory. Raises as above."""
    paths = device_paths(handle, tree)
    unpack(tree, lambda index: os.open(paths[index], os.O_RDONLY | os.O_CLOEXEC), path, check=check, sync=handle.sync)
    return path
