"""The state of the store as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from layerfs.api.base import StorePart
from layerfs.api.callback import callbacks
from layerfs.store.handle import FORMAT_VERSION
from layerfs.store.snapshot import sweep_snapshots

if TYPE_CHECKING:
    from layerfs.store.check import Problem
    from layerfs.store.gc import Reclaimed
    from layerfs.store.usage import Usage
    from layerfs.values import Info

__all__ = ["UpkeepPart"]


class UpkeepPart(StorePart):
    """Measuring, checking, collecting."""

    def usage(self) -> Usage:
        """Measure the store: sizes on disk, what is shared, what sharing saves."""
        from layerfs.store.usage import measure

        return measure(self._handle)

    def info(self) -> Info:
        """Return what this store and machine are."""
        from layerfs.mount.choose import explain_backends
        from layerfs.values import Info

        connection = self._handle.database.connection

        def count(table: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

        layout = self._handle.layout
        return Info(
            layout.root, layout.runroot, FORMAT_VERSION, count("image"), count("layer"), count("snapshot"),
            tuple(explain_backends()),
        )  # fmt: skip

    def check(self, *, repair: bool = False, check: Callable[[], None] | None = None) -> Generator[Problem, None, None]:
        """Yield what is wrong with the store, after reading all of it; see :func:`layerfs.store.check.check_store`."""
        from layerfs.store.check import check_store

        with self._writing("check"):
            yield from check_store(self._handle, repair=repair, check=check)

    def gc(self, *, check: Callable[[], None] | None = None) -> Reclaimed:
        """Remove what nothing refers to: layers of failed loads, trees, documents, what broken pulls have received.

        What killed processes have left goes as well: of loads, of containers that they made or removed, of unpacking.

        Args:
            check: polled between the layers; what it raises ends the work, and the next call goes on.
        """
        from layerfs.mount.unpack import sweep_staging
        from layerfs.store.gc import collect
        from layerfs.store.part import sweep_parts

        with callbacks() as own, self._writing("gc"):
            freed = sweep_snapshots(self._handle) + sweep_parts(self._handle)
            for algorithm in ("sha256", "sha512"):
                freed += sweep_staging(os.path.join(self._handle.layout.root, "unpacked", algorithm))
            found = collect(self._handle, check=own.check(check))
        return replace(found, size=found.size + freed)
