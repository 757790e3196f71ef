"""One step of a changeset: what happened to which path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Change", "ChangeKind"]

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
