"""One step of a changeset: what happened to which path, for who reads it and for who writes a layer of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerfs.changeset.entry import Entry

__all__ = ["Change", "ChangeKind", "Step"]

#: Added, changed, deleted: the letters that docker and podman print.
ChangeKind = Literal["A", "C", "D"]


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs between two trees.

    Attributes:
        kind: ``A`` if it is only in the new tree, ``D`` if only in the old, ``C`` if in both and different, or if
            something below it is.
        path: absolute inside the tree, without trailing slash; any bytes but NUL.
    """

    kind: ChangeKind
    path: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """A change with both states of its path, to be looked at before the next step is taken.

    Attributes:
        kind: as of :class:`Change`; None for what no list of changes shows but a layer has to repeat: a root whose time
            alone differs, a name of a file with several names, bytes that differ behind equal attributes.
        path: as of :class:`Change`; empty for the root.
        old: the state before, None for what was not there.
        new: the state after, None for what is gone.
        opaque: whether the directory shows nothing of what the old one had in it; then everything that it has follows
            as added.
        bare: whether nothing is said of the directory itself, only that it is ``opaque``.
    """

    kind: ChangeKind | None
    path: bytes
    old: Entry | None
    new: Entry | None
    opaque: bool = False
    bare: bool = False

    @property
    def shown_path(self) -> bytes:
        """The path as lists show it: ``/`` for the root."""
        return self.path or b"/"
