"""The layout of ``certs.d/HOST[:PORT]/``: certificates for one registry, as docker and podman keep them.

``*.crt`` are certificate authorities to trust besides the machine's; ``NAME.cert`` and ``NAME.key`` are a client's
certificate and key. Only names are looked at here.

Source: containers-certs.d(5); docker "Verify repository client with certificates".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from layerfs.errors import FormatError

__all__ = ["CertificateNames", "sort_certificates"]


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """File names of one directory: authorities, and (certificate, key) pairs of a client."""

    authorities: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def sort_certificates(names: Iterable[str], where: str) -> CertificateNames:
    """Tell the files of a directory apart.

    Args:
        names: its entries; those with other endings are passed over.
        where: the directory, for errors.

    Raises:
        FormatError: a certificate without its key, or a key without its certificate.
    """
    found = set(names)
    pairs = []
    for name in sorted(found):
        stem, dot, ending = name.rpartition(".")
        other = {"cert": "key", "key": "cert"}.get(ending) if dot else None
        if other is None:
            continue
        if f"{stem}.{other}" not in found:
            hint = "Certificate authorities are called *.crt." if ending == "cert" else None
            raise FormatError(f"{name} has no {stem}.{other} beside it", where=where, hint=hint)
        if ending == "cert":
            pairs.append((name, f"{stem}.key"))
    return CertificateNames(tuple(sorted(name for name in found if name.endswith(".crt"))), tuple(pairs))
