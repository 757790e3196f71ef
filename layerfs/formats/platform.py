"""Platforms: for which operating system and processor an image is made, and which of several fits best.

A :class:`Platform` is always normalised, so equal platforms compare equal however they were spelt. layerfs mounts
images and does not run them, so nothing falls back to another architecture (386 on amd64, arm on arm64): an image that
cannot run would be mounted without a word. Only variants of one architecture stand in for each other.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from layerfs.errors import InvalidReference, NotFound

__all__ = ["KNOWN_ARCHITECTURES", "KNOWN_SYSTEMS", "Platform"]

#: Values of GOOS and GOARCH. They are only needed to tell what a single word means; documents may hold others.
KNOWN_SYSTEMS: Final = frozenset(
    {
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "illumos",
        "ios",
        "js",
        "linux",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "wasip1",
        "windows",
    }
)
KNOWN_ARCHITECTURES: Final = frozenset(
    {
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mipsle",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    }
)

#: Other spellings, as the kernel, Debian and users write them, to architecture and variant.
_ALIASES: Final[dict[str, tuple[str, str | None]]] = {
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", None),
    "ppc64el": ("ppc64le", None),
    "mips64el": ("mips64le", None),
    "mipsel": ("mipsle", None),
}

#: Architectures whose variants are versions, each including the ones before, and the version that is meant when none
#: is given. It is written without its variant, except on arm, where everyone writes v7.
_BASE_VERSION: Final = {"amd64": (1, 0), "arm64": (8, 0), "arm": (7, 0)}
#: No arm processor below this is supported by Linux distributions or Go.
_OLDEST_ARM = (5, 0)
_VERSION = re.compile(r"v?([0-9]{1,3})(?:\.([0-9]{1,3}))?", re.ASCII)
_WORD = re.compile(r"[a-z0-9_.-]{1,128}")
#: Weight of a major version in a rank; minor versions have at most three digits.
_MAJOR_WEIGHT = 1000
#: Ranks of images that fit in all but a detail.
_WITHOUT_VARIANT = 10**6
_WITHOUT_PLATFORM = 10**9
#: How many platforms an error lists; a hostile index could name thousands.
_MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, a processor architecture, and where needed their variants.

    The constructor normalises: case, other spellings of an architecture (``x86_64``, ``aarch64``, ``armhf``, ...) and
    variants that say no more than the architecture (amd64 v1, arm64 v8).

    Attributes:
        os: as Go's GOOS, such as ``linux``.
        architecture: as Go's GOARCH, such as ``amd64``.
        variant: such as ``v7``; None when the architecture says it all.
        os_version: version of the operating system, used on Windows only; or None.
    """

    os: str
    architecture: str
    variant: str | None = None
    os_version: str | None = None

    def __post_init__(self) -> None:
        """Normalise the fields and refuse what is no word."""
        system = self.os.lower()
        alias, implied = _ALIASES.get(self.architecture.lower(), (self.architecture.lower(), None))
        variant = (self.variant or "").lower() or implied
        for word in (system, alias, variant):
            if word is not None and _WORD.fullmatch(word) is None:
                raise InvalidReference(f"not the name of a system, processor or variant: {word!r:.60}")
        object.__setattr__(self, "os", "darwin" if system == "macos" else system)
        object.__setattr__(self, "architecture", alias)
        object.__setattr__(self, "variant", _normal_variant(alias, variant))

    @classmethod
    def parse(cls, text: str, *, host: Platform | None = None) -> Self:
        """Read ``os``, ``architecture``, ``os/architecture`` or ``os/architecture/variant``.

        Args:
            text: the platform as a user writes it, in any case and spelling that is known.
            host: fills in what a single word leaves out; this machine's platform if None.

        Raises:
            InvalidReference: empty, too many parts, or a single word that is neither system nor architecture.

        Source: the platform specifiers of containerd, as docker and podman take them.
        """
        parts = text.split("/")
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise InvalidReference(f"not a platform: {text!r:.120}", hint="write OS/ARCHITECTURE, such as linux/arm64")
        if len(parts) > 1:
            return cls(parts[0], parts[1], parts[2] if len(parts) > 2 else None)
        host = host or Platform.host()
        word = text.lower()
        if word == "macos" or word in KNOWN_SYSTEMS:
            same = host.os == cls(word, host.architecture).os
            return cls(word, host.architecture, host.variant if same else None)
        if word in _ALIASES or word in KNOWN_ARCHITECTURES:
            return cls(host.os, word)
        raise InvalidReference(
            f"neither an operating system nor a processor architecture: {text!r:.120}",
            hint="write OS/ARCHITECTURE, such as linux/arm64",
        )

    @classmethod
    def of(cls, wanted: Platform | str | None) -> Platform:
        """Return a platform that was given as one or in words; this machine's for None. Raises as :meth:`parse`."""
        if wanted is None:
            return cls.host()
        return cls.parse(wanted) if isinstance(wanted, str) else wanted

    @classmethod
    def host(cls) -> Self:
        """Return the platform of the running kernel, without asking for more than its machine name.

        Raises:
            InvalidReference: the kernel's machine name is not a word; none of Linux's is.
        """
        return cls(sys.platform, os.uname().machine)

    @property
    def is_unknown(self) -> bool:
        """Whether this is ``unknown/unknown``, which builders write on attestations."""
        return self.os == "unknown" and self.architecture == "unknown"

    def rank(self, candidate: Platform) -> int | None:
        """Tell how well an image for another platform fits this one.

        Args:
            candidate: the platform an image is made for.

        Returns:
            0 for an exact fit, more for a worse one, None for an image that does not fit. Lower versions of one
            architecture fit, nearest first: v7, v6 and v5 on arm v7. Without ``os_version`` here, every version fits.
        """
        if (candidate.os, candidate.architecture) != (self.os, self.architecture):
            return None
        if self.os_version is not None and candidate.os_version not in {None, self.os_version}:
            return None
        if candidate.variant == self.variant:
            return 0
        mine, theirs = _version(self), _version(candidate)
        if mine is None or theirs is None:
            return _WITHOUT_VARIANT if candidate.variant is None else None
        if theirs > mine or (self.architecture == "arm" and theirs < _OLDEST_ARM):
            return None
        return (mine[0] - theirs[0]) * _MAJOR_WEIGHT + mine[1] - theirs[1]

    def matches(self, candidate: Platform) -> bool:
        """Tell whether an image for another platform fits this one at all."""
        return self.rank(candidate) is not None

    def select(self, candidates: Sequence[Platform | None]) -> int:
        """Choose the image that fits best.

        Args:
            candidates: the platforms of the images. None is one that does not say; it is taken when nothing that
                says so fits, and then the caller has to look at the image's config. ``unknown/unknown`` never fits.

        Returns:
            The position of the best candidate, the first of equally good ones.

        Raises:
            NotFound: none fits; the hint lists the platforms that there are.
        """
        best: tuple[int, int] | None = None
        for position, candidate in enumerate(candidates):
            rank = _WITHOUT_PLATFORM if candidate is None else self.rank(candidate)
            if rank is not None and not (candidate and candidate.is_unknown) and (best is None or rank < best[0]):
                best = (rank, position)
        if best is None:
            raise NotFound("platform", str(self), hint=_list_platforms(candidates))
        return best[1]

    def __str__(self) -> str:
        """Return ``os/architecture``, with the variant where there is one."""
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


def _normal_variant(architecture: str, variant: str | None) -> str | None:
    """Return the one spelling of a variant."""
    base = _BASE_VERSION.get(architecture)
    if base is None:
        return variant
    if variant is None:
        return "v7" if architecture == "arm" else None
    match = _VERSION.fullmatch(variant)
    if match is None:
        return variant
    version = (int(match[1]), int(match[2] or 0))
    if version == base and architecture != "arm":
        return None
    return f"v{version[0]}" + (f".{version[1]}" if version[1] else "")


def _version(platform: Platform) -> tuple[int, int] | None:
    """Return the variant as a version, or None where variants are no versions."""
    base = _BASE_VERSION.get(platform.architecture)
    if base is None or platform.variant is None:
        return base
    match = _VERSION.fullmatch(platform.variant)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def _list_platforms(candidates: Iterable[Platform | None]) -> str:
    """Say in one sentence which platforms there are."""
    known = list(dict.fromkeys(str(candidate) for candidate in candidates if candidate and not candidate.is_unknown))
    if not known:
        return "choose another image, this one names no platform at all"
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    return f"choose one of {', '.join(known[:_MAX_LISTED])}{more}"
