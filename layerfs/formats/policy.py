"""Trust policies: which images may be taken at all, as containers-policy.json(5) says it.

Read strictly, as everybody does: a member that is unknown, double or of the wrong kind refuses the whole file, since a
policy that is half understood is no policy. ``insecureAcceptAnything`` and ``reject`` are decided here. The kinds that
need signatures are read and then refuse: layerfs does not verify signatures, and must not act as if it did.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from layerfs.errors import Denied, FormatError
from layerfs.formats.document import JsonObject, json_objects, parse_document
from layerfs.formats.reference import Reference

__all__ = ["Policy", "path_scopes", "reference_scopes"]

_ACCEPT = "insecureAcceptAnything"
_REJECT = "reject"

#: Members that a requirement of each type may have, beside ``type``.
_MEMBERS = {
    _ACCEPT: frozenset[str](),
    _REJECT: frozenset[str](),
    "signedBy": frozenset({"keyType", "keyPath", "keyPaths", "keyData", "signedIdentity"}),
    "sigstoreSigned": frozenset(
        {
            "keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki", "rekorPublicKeyPath",
            "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas", "signedIdentity",
        }
    ),
    "signedBaseLayer": frozenset({"baseLayerIdentity"}),
}  # fmt: skip


#: Transports whose scopes are paths.
_OF_PATHS = frozenset({"oci", "oci-archive", "dir", "docker-archive"})


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed policy.

    Attributes:
        default: types of the requirements for what no scope covers.
        transports: by transport and scope, the types of the requirements; scope ``""`` is the transport's default.
    """

    default: tuple[str, ...]
    transports: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes, what: str = "policy.json") -> Self:
        """Read a policy.

        Args:
            raw: the file's bytes.
            what: its name, for errors.

        Raises:
            FormatError: anything in it is not as the manual page has it.
        """
        top = JsonObject(parse_document(raw, what), what)
        _only(top, frozenset({"default", "transports"}))
        if not top.has("default"):
            raise top.error("default", "is missing")
        default = _requirements(top, "default")
        transports: dict[str, dict[str, tuple[str, ...]]] = {}
        listed = top.optional_child("transports")
        for transport in listed.members if listed is not None else ():
            assert listed is not None
            scopes = listed.child(transport)
            for scope in scopes.members:
                _check_scope(transport, scope, scopes)
            transports[transport] = {scope: _requirements(scopes, scope) for scope in scopes.members}
        return cls(default, transports)

    def check(self, transport: str, scopes: Sequence[str], what: str) -> None:
        """Refuse an image that the policy does not let in.

        Args:
            transport: such as ``docker`` or ``oci``.
            scopes: what the image is called in policies, the most special first; see :func:`reference_scopes`.
            what: the image, for the error.

        Raises:
            Denied: the policy rejects it, or asks for a signature.
        """
        rules = self.transports.get(transport, {})
        scope = next((scope for scope in (*scopes, "") if scope in rules), None)
        place = "default" if scope is None else f"{transport} scope {scope!r:.120}" if scope else f"{transport} default"
        for requirement in self.default if scope is None else rules[scope]:
            if requirement == _REJECT:
                raise Denied(f"the trust policy rejects {what} ({place})")
            if requirement != _ACCEPT:
                raise Denied(
                    f"the trust policy wants {what} signed ({requirement}, {place}); layerfs verifies no signatures",
                    hint="Copy it with skopeo, which does, or change the policy, or pass --insecure-policy.",
                )


def reference_scopes(reference: Reference) -> list[str]:
    """Return the scopes of a registry image, the most special first: itself, its repository, each prefix, wildcards.

    Source: containers-policy.json(5), "docker:".
    """
    if reference.digest is not None:
        scopes = [f"{reference.name}@{reference.digest}"]
    else:
        scopes = [str(reference.with_default_tag())]
    parts = reference.path.split("/")
    scopes += ["/".join((reference.domain, *parts[:count])) for count in range(len(parts), -1, -1)]
    host = reference.domain.partition(":")[0]  # wildcards are about names of hosts, which have no port
    while "." in host:
        host = host.partition(".")[2]
        scopes.append(f"*.{host}")
    return scopes


def path_scopes(path: str) -> list[str]:
    """Return the scopes of an image in a file or directory, the most special first: the absolute path, its parents.

    What an image is called in there is no part of them.
    """
    scopes = []
    while path not in ("", "/"):
        scopes.append(path)
        path = path.rpartition("/")[0]
    return scopes


def _check_scope(transport: str, scope: str, members: JsonObject) -> None:
    """Refuse a scope that no image of a transport could ever have: its author meant something else.

    Source: containers-policy.json(5); the hub's docker.io has scopes of any kind.
    """
    if not scope or transport not in _OF_PATHS:
        return
    if transport == "docker-archive":
        raise members.error(scope, "docker-archive has no scopes but the default")
    if not scope.startswith("/") or scope == "/" or posixpath.normpath(scope) != scope:
        raise members.error(scope, "a scope is an absolute path without dots and slashes at its end, and not the root")


def _only(members: JsonObject, known: frozenset[str]) -> None:
    for key in members.members:
        if key not in known:
            raise FormatError(f"unknown member {key!r:.80}", where=members.where)


def _requirements(members: JsonObject, key: str) -> tuple[str, ...]:
    place = members.place(repr(key) if key != "default" else key)
    items = members.members[key]
    if not isinstance(items, list) or not items:
        raise FormatError("must be an array with at least one requirement", where=place)
    found = []
    for requirement in json_objects(items, where=place):
        kind = requirement.text("type")
        if kind not in _MEMBERS:
            raise requirement.error("type", f"unknown requirement {kind!r:.80}")
        _only(requirement, _MEMBERS[kind] | {"type"})
        found.append(kind)
    return tuple(found)
