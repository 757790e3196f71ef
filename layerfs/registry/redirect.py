"""Following redirects: what neither leaves TLS nor takes a credential along."""

from __future__ import annotations

from collections.abc import Callable

from layerfs.errors import RegistryError
from layerfs.registry.http import HttpResponse, origin, resolve

__all__ = ["followed"]

#: Redirects followed for one request; registries need one, mirrors behind them another.
_MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)


def followed(
    answer: HttpResponse, ask: Callable[[str], HttpResponse], home: tuple[str, str, int], who: str, *, insecure: bool
) -> HttpResponse:
    """Return the answer at the end of redirects.

    Args:
        answer: the first one.
        ask: asks another URL; a credential goes to ``home`` alone.
        home: whom the first request was for, as :func:`layerfs.registry.http.origin` says it.
        who: sends us elsewhere, for errors.
        insecure: whether redirects may lead from TLS to plain HTTP.

    Raises:
        RegistryError: they lead to where there is no TLS, to what is no URL, or on and on.
    """
    for count in range(_MAX_REDIRECTS + 1):
        place = answer.header("Location")
        if answer.status not in _REDIRECTS or not place:
            return answer
        answer.close()
        if count == _MAX_REDIRECTS:
            break
        url = resolve(answer.url, place)
        there = origin(url)
        if there[0] == "http" and home[0] == "https" and not insecure:
            raise RegistryError(f"{who} redirects to {there[1]} without TLS")
        answer = ask(url)
    raise RegistryError(f"{who} redirects more than {_MAX_REDIRECTS} times")
