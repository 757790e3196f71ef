"""Which backend makes a mount here, and why the others do not.

A backend is a way to mount; for the overlay backend, what lies below matters as much as the backend, so each pair is
explained by itself. Everything is found out by probing, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from layerfs.errors import BackendUnavailable, InvalidReference
from layerfs.linux.probe import Feature, feature, privilege_hint

__all__ = ["BackendStatus", "LowerKind", "choose_backend", "explain_backends", "fuse_status"]

#: What the overlay backend puts below: the merged EROFS image, or layers unpacked to directories.
LowerKind = Literal["erofs", "dirs"]


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether one way to mount works here.

    Attributes:
        backend: ``overlay`` or ``fuse``.
        lower: ``erofs`` or ``dirs`` for ``overlay``, else None.
        usable: whether this process can use it now.
        reason: why not, or how it works; one clause, lower case, no full stop.
    """

    backend: str
    lower: LowerKind | None
    usable: bool
    reason: str

    @property
    def name(self) -> str:
        """``overlay``, ``overlay (lower=dirs)`` or ``fuse``."""
        return self.backend if self.lower in {None, "erofs"} else f"{self.backend} (lower={self.lower})"

    def __str__(self) -> str:
        """Return ``NAME: usable, …`` or ``NAME: not, because …``."""
        return f"{self.name}: {'usable, ' if self.usable else 'not, because '}{self.reason}"


def explain_backends() -> list[BackendStatus]:
    """Explain every backend.

    Returns:
        The fastest first, usable or not.

    Blocking: probes the kernel the first time, about 2 ms.
    """
    return [_overlay("erofs"), _overlay("dirs"), fuse_status()]


def fuse_status() -> BackendStatus:
    """Explain the FUSE backend."""
    found = feature("fuse")
    if not found.usable:
        return BackendStatus("fuse", None, usable=False, reason=found.reason)
    return BackendStatus("fuse", None, usable=True, reason="a process per mount serves the image through /dev/fuse")


def choose_backend(backend: str = "auto", lower: str = "auto", *, tried: Sequence[BackendStatus] = ()) -> BackendStatus:
    """Return the backend to use, or say why there is none.

    Args:
        backend: ``auto``, ``overlay`` or ``fuse``.
        lower: ``auto``, ``erofs`` or ``dirs``; ``auto`` takes the first that works.
        tried: what turned out not to work after all, with the reason.

    Returns:
        A usable backend: the first of :func:`explain_backends` that matches; behind what was tried FUSE comes first.

    Raises:
        BackendUnavailable: if none that matches is usable; ``reasons`` has one for each of them, ``hint`` names
            another that would work.
        InvalidReference: for a name that is no backend or no lower.

    Blocking: probes only what is asked for, the first time.
    """
    if backend not in {"auto", "overlay", "fuse"}:
        raise InvalidReference(f"unknown backend: {backend}", hint="Use auto, overlay or fuse.")
    if lower not in {"auto", "erofs", "dirs"}:
        raise InvalidReference(f"unknown lower: {lower}", hint="Use auto, erofs or dirs.")
    refused = list(tried)
    names = {status.name for status in tried}
    ways: list[tuple[str, LowerKind | None]] = [("overlay", "erofs"), ("overlay", "dirs"), ("fuse", None)]
    if tried:
        # Where the kernel does not mount an image, FUSE reads it as it lies there; directories are a second copy of it.
        ways = [ways[0], ways[2], ways[1]]
    for name, candidate in ways:
        if backend not in {"auto", name} or (candidate is not None and lower not in {"auto", candidate}):
            continue
        status = fuse_status() if candidate is None else _overlay(candidate)
        if candidate is None and lower == "dirs" and status.usable:
            status = replace(status, usable=False, reason="it reads the image as it is stored, not directories")
        if status.name in names:
            continue
        if status.usable:
            return status
        refused.append(status)
    if backend == "auto":
        # Which one of them can be put right, a user knows best.
        problem = (
            f"no backend works here: {'; '.join(dict.fromkeys(f'{one.backend}: {one.reason}' for one in refused))}"
        )
    else:
        problem = f"backend {refused[0].name} does not work here: {refused[0].reason}"
    raise BackendUnavailable(
        problem,
        reasons={status.name: status.reason for status in refused},
        hint=_way_out(refused),
    )


def _overlay(lower: LowerKind) -> BackendStatus:
    """Probe what the overlay backend needs, in the order in which an administrator would put it right."""
    needed = ["privilege", "mount-api", "overlay"]
    # Unpacked layers carry their opaque marks in trusted xattrs.
    needed += ["erofs", "erofs-file"] if lower == "erofs" else ["trusted-xattrs"]
    found: list[Feature] = []
    for name in needed:
        found.append(feature(name))
        if not found[-1].usable:
            return BackendStatus("overlay", lower, usable=False, reason=found[-1].reason)
    if lower == "erofs":
        reason = "one EROFS image below overlayfs, whatever the number of layers"
    else:
        reason = "layers are unpacked to directories when first mounted"
    return BackendStatus("overlay", lower, usable=True, reason=reason)


def _way_out(refused: list[BackendStatus]) -> str | None:
    """Say what would work instead."""
    names = {status.name for status in refused}
    ways = (
        (_overlay("erofs"), "--backend overlay"), (_overlay("dirs"), "--backend overlay --lower dirs"),
        (fuse_status(), "--backend fuse"),
    )  # fmt: skip
    for status, flags in ways:
        if status.name not in names and status.usable:
            return f"use {flags}"
    return None if feature("privilege").usable else privilege_hint()
