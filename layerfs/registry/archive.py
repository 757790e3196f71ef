"""Where an image in an archive, layout or directory is, by what a user wrote, and whether it may be used."""

from __future__ import annotations

import os

from layerfs.errors import InvalidReference, NotFound, UnsupportedFormat
from layerfs.formats.policy import path_scopes
from layerfs.formats.transport import ImageSource, parse_source
from layerfs.registry.access import Access

__all__ = ["find_archive"]


def find_archive(source: str, access: Access) -> ImageSource:
    """Return where an image in an archive is, after asking the policy.

    Args:
        source: ``docker-archive:FILE[:NAME]`` and so on; no registry.
        access: the trust policy.

    Raises:
        UnsupportedFormat: no such transport.
        NotFound: there is nothing.
        InvalidReference: a directory where a file has to be, or the other way round.
        Denied: the policy refuses.
    """
    wanted = parse_source(source)
    if wanted.transport not in ("docker-archive", "oci-archive", "oci", "dir"):
        raise UnsupportedFormat(
            f"pulling from {wanted.transport}: is not supported",
            hint="Copy the image to an archive first, then: layerfs pull oci-archive:FILE",
        )
    if not os.path.exists(wanted.path):
        raise NotFound("file or directory", wanted.path)
    if (wanted.transport in ("oci", "dir")) != os.path.isdir(wanted.path):
        kind = "directory" if wanted.transport in ("oci", "dir") else "file"
        raise InvalidReference(f"{wanted.transport}: needs a {kind}, which {wanted.path} is not")
    policy = access.read_policy()
    if policy is not None:
        policy.check(wanted.transport, path_scopes(os.path.realpath(wanted.path)), source)
    return wanted
