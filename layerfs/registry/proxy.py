"""Which proxy a request goes through: by the variables that everybody reads, and as podman and docker read them.

Source: Go's golang.org/x/net/http/httpproxy, whose reading of ``NO_PROXY`` is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

__all__ = ["find_proxy", "is_loopback"]


def find_proxy(proxies: Mapping[str, str], scheme: str, host: str, port: int) -> str | None:
    """Return the URL of the proxy for a host, or None for no proxy.

    Args:
        proxies: URL by scheme, under ``all`` for every scheme, and under ``no`` what needs none: hosts and what is
            below them, ``.domain`` for that alone, addresses and networks, each with a port or without, or ``*``.
        scheme: of the request.
        host: its host, in lower case, without brackets. This machine itself never needs a proxy.
        port: its port.
    """
    url = proxies.get(scheme) or proxies.get("all")
    if not url or _is_local(host):
        return None
    exempt = (word.strip().lower() for word in (proxies.get("no") or "").split(","))
    if any(_fits(word, host, port) for word in exempt if word):
        return None
    return url if "://" in url else f"http://{url}"


def is_loopback(domain: str) -> bool:
    """Whether a host with an optional port is this machine by its name."""
    host = domain[1:].partition("]")[0] if domain.startswith("[") else domain.partition(":")[0]
    return _is_local(host.lower())


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _fits(word: str, host: str, port: int) -> bool:
    if word == "*":
        return True
    try:
        return ip_address(host) in ip_network(word, strict=False)
    except ValueError:
        pass
    name, colon, digits = word.rpartition(":")
    if colon and digits.isascii() and digits.isdecimal() and (":" not in name or name.endswith("]")):
        if int(digits) != port:
            return False
        word = name.strip("[]")
    if word.startswith("*."):
        word = word[1:]
    return host == word or host.endswith(word if word.startswith(".") else f".{word}")
