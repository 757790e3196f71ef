"""Content digests: the names of all immutable bytes, and the chain IDs made from them.

A :class:`Digest` is data, not a promise: nothing here reads content from anywhere. The one invariant: the two fields
of a ``Digest`` always match the grammar, so both are safe as single components of a host path.

sha256 and sha512 are the two algorithms that the OCI image specification registers; anything else is refused, so that
a weak algorithm (md5, sha1) never decides what content is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from layerfs.errors import InvalidReference

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["HEX_LENGTHS", "Digest", "chain_id", "new_hash"]

#: Number of hex digits per algorithm.
HEX_LENGTHS = {"sha256": 64, "sha512": 128}

_LOWER_HEX = re.compile(r"[0-9a-f]+")
#: Enough to tell the blobs of one store apart by eye, and what docker and podman show.
_SHORT_LENGTH = 12


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The digest of some bytes, as ``algorithm:hex``.

    Digests sort by algorithm, then by hex digits.

    Attributes:
        algorithm: ``sha256`` or ``sha512``.
        hex: lower-case hex digits, 64 for sha256 and 128 for sha512.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        """Refuse fields that do not match the grammar."""
        length = HEX_LENGTHS.get(self.algorithm)
        if length is None:
            raise InvalidReference(
                f"digest algorithm {self.algorithm!r:.40} is not supported", hint="use a sha256 or sha512 digest"
            )
        if len(self.hex) != length:
            raise InvalidReference(
                f"a {self.algorithm} digest has {length} hex digits, not {len(self.hex)}: {self.hex!r:.140}"
            )
        if _LOWER_HEX.fullmatch(self.hex) is None:
            raise InvalidReference(f"digest is not lower-case hex: {self.hex!r:.140}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``algorithm:hex``.

        Args:
            text: the digest, without surrounding space.

        Raises:
            InvalidReference: no colon, an algorithm other than sha256 and sha512, or hex digits that are not
                lower-case or not of the algorithm's exact number.

        Source: OCI image-spec v1.1 descriptor.md, "Digests".
        """
        algorithm, colon, digits = text.partition(":")
        if not colon:
            raise InvalidReference(f"not a digest: {text!r:.140}", hint="write it as sha256: and 64 hex digits")
        return cls(algorithm, digits)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Self:
        """Return the digest of bytes in memory.

        Raises:
            InvalidReference: the algorithm is not supported.
        """
        state = new_hash(algorithm)
        state.update(data)
        return cls(algorithm, state.hexdigest())

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people; never unique by promise."""
        return self.hex[:_SHORT_LENGTH]

    def __str__(self) -> str:
        """Return ``algorithm:hex``."""
        return f"{self.algorithm}:{self.hex}"


def new_hash(algorithm: str = "sha256") -> _Hash:
    """Return a fresh hash object of a supported algorithm.

    ``update`` of the result releases the GIL for pieces above 2 KiB.

    Raises:
        InvalidReference: the algorithm is not supported.
    """
    if algorithm not in HEX_LENGTHS:
        raise InvalidReference(
            f"digest algorithm {algorithm!r:.40} is not supported", hint="use a sha256 or sha512 digest"
        )
    import hashlib  # noqa: PLC0415 - brings OpenSSL along, 4 ms, which those who digest nothing need not wait for

    return hashlib.new(algorithm, usedforsecurity=True)


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """Return the chain ID of a stack of layers: the name of the file system they make together.

    Args:
        diff_ids: digests of the uncompressed layer tars, bottom first.

    Returns:
        The diff ID itself for one layer. For none, which the specification leaves open, the sha256 of no bytes: that
        is also the diff ID of a layer tar of zero bytes, and both stacks are the same empty tree. All longer chains
        are sha256, whatever algorithm the diff IDs use, as in every other implementation.

    Source: OCI image-spec v1.1 config.md, "Layer ChainID".
    """
    if not diff_ids:
        return Digest.of(b"")
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = Digest.of(f"{chain} {diff_id}".encode("ascii"))
    return chain
