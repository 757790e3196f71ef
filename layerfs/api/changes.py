"""What was changed in containers."""

from __future__ import annotations

import os
from collections.abc import Iterator

from layerfs.api.base import StorePart
from layerfs.changeset.change import Change
from layerfs.changeset.upper import compare_upper
from layerfs.linux.probe import feature
from layerfs.store import image as catalog
from layerfs.store.snapshot import find_snapshot

__all__ = ["ChangePart"]


class ChangePart(StorePart):
    """Comparing."""

    def diff(self, container: str) -> Iterator[Change]:
        """Yield what was changed in a container, a directory before what is in it, in byte order of names.

        Raises:
            NotFound: no such container.

        Blocking: reads the container's writable layer only, and looks its paths up in the image's tree.
        """
        snapshot = find_snapshot(self._handle, container)
        record = catalog.find_image(self._handle, str(snapshot.image))
        upper = os.path.join(self._handle.layout.snapshot(snapshot.id), "upper")
        # As whoever mounts here keeps the marks; see layerfs.mount.fuse.serve.
        userxattr = not feature("trusted-xattrs").usable
        yield from compare_upper(upper, catalog.merged_tree(self._handle, record), userxattr=userxattr)
