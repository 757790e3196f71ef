"""``registries.conf``, version 2: which registries stand for which, mirrors, and what short names mean.

Several files make one configuration: the main file and then its drop-ins, in order. A later file replaces
``[[registry]]`` tables of the same prefix, single settings, and single aliases. What mirrors are tried for a reference,
and with which name, is worked out here; connecting to them is for ``registry/``.

Source: containers-registries.conf(5); containers-registries.conf.d(5).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from layerfs.errors import Denied, FormatError, InvalidReference, LimitExceeded
from layerfs.formats.document import JsonObject, json_objects
from layerfs.formats.reference import DEFAULT_DOMAIN, Reference

__all__ = ["AUTH_FILES", "Endpoint", "Mirror", "RegistriesConfig", "Registry", "is_short_name"]

#: Bytes of one file. Tables in tables cost the parser far more than they have bytes.
_MAX_FILE = 256 << 10

#: What stands in a list of credential helpers for the files of containers-auth.json(5).
AUTH_FILES = "containers-auth.json"

_SHORT_NAME_MODES = ("", "enforcing", "permissive", "disabled")
_PULL_FROM_MIRROR = ("", "all", "digest-only", "tag-only")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to try for an image: the name it has there, and whether plain HTTP and bad certificates are allowed."""

    reference: Reference
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror: where, and for which references (``all``, ``digest-only``, ``tag-only``)."""

    location: str
    insecure: bool = False
    pull_from_mirror: str = "all"


@dataclass(frozen=True, slots=True)
class Registry:
    """One ``[[registry]]`` table; ``location`` is None where it says nothing, so that names stay as they are."""

    prefix: str
    location: str | None = None
    insecure: bool = False
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistriesConfig:
    """A whole configuration; without files, that of docker.

    Attributes:
        registries: by prefix.
        search: registries that a short name is looked for in, in order; None when no file says anything.
        aliases: references by short name.
        short_name_mode: ``enforcing``, ``permissive`` or ``disabled``; empty when not set, which is ``permissive``.
        credential_helpers: names of helpers in the order to ask them, :data:`AUTH_FILES` for the auth files.
    """

    registries: Mapping[str, Registry] = field(default_factory=dict)
    search: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    short_name_mode: str = ""
    credential_helpers: tuple[str, ...] = (AUTH_FILES,)

    @classmethod
    def parse(cls, files: Iterable[tuple[str, bytes]]) -> Self:
        """Read a configuration.

        Args:
            files: name and bytes of each file, the main one first.

        Raises:
            FormatError: one is no TOML, of version 1, or has a member of the wrong kind. Unknown members are passed
                over, as by everybody: newer versions have more.
        """
        config = cls()
        for name, raw in files:
            config = config._with(name, raw)
        return config

    def endpoints(self, reference: Reference) -> list[Endpoint]:
        """Return where to try for an image, in order: mirrors, then the registry itself.

        Raises:
            Denied: the registry is blocked.
            FormatError: a location makes no reference out of it.
        """
        registry = self.find(str(reference))
        if registry is None:
            return [Endpoint(reference)]
        found = []
        by_digest = reference.digest is not None
        for mirror in registry.mirrors:
            wanted = mirror.pull_from_mirror
            if by_digest or not (registry.mirror_by_digest_only or wanted == "digest-only"):
                if wanted == "tag-only" and by_digest:
                    continue
                moved = _moved(reference, registry.prefix, mirror.location)
                found.append(Endpoint(moved, mirror.insecure))
        own = reference if registry.location is None else _moved(reference, registry.prefix, registry.location)
        return [*found, Endpoint(own, registry.insecure)]

    def find(self, text: str) -> Registry | None:
        """Return the table about a canonical name, or about a host alone: that with the longest prefix that fits.

        Raises:
            Denied: the registry is blocked.
        """
        fitting = [entry for entry in self.registries.values() if _match(entry.prefix, text) is not None]
        registry = max(fitting, key=lambda entry: len(entry.prefix), default=None)
        if registry is not None and registry.blocked:
            raise Denied(f"registry {registry.prefix} is blocked in registries.conf")
        return registry

    def expand(self, text: str) -> list[Reference]:
        """Return what a name may mean, in the order to try.

        A name with a host means itself. A short one means its alias if there is one, else the image of that name on
        each of the search registries; docker.io, where no file names any.

        Raises:
            InvalidReference: it is no name, or means several images and the mode is ``enforcing``, which would have to
                ask.
        """
        if not is_short_name(text):
            return [Reference.parse(text).with_default_tag()]
        reference = Reference.parse(text).with_default_tag()
        # What stands behind the name: a tag, a digest, or both.
        rest = str(reference)[len(reference.name) :]
        short = text.partition("@")[0]
        colon = short.find(":", short.rfind("/") + 1)
        short = short if colon < 0 else short[:colon]
        alias = self.aliases.get(short)
        if alias:
            return [Reference.parse(alias + rest)]
        if not self.search:
            return [reference]
        if len(self.search) > 1 and self.short_name_mode == "enforcing":
            raise InvalidReference(
                f"{text!r:.120} may mean an image on any of {', '.join(self.search)}",
                hint=f"Write {self.search[0]}/{text}, or set an alias or another short-name-mode in registries.conf.",
            )
        return [Reference.parse(f"{host}/{short}{rest}") for host in self.search]

    def _with(self, name: str, raw: bytes) -> Self:
        if len(raw) > _MAX_FILE:
            raise LimitExceeded(f"{len(raw)} bytes, at most {_MAX_FILE} are read", where=name)
        try:
            document = tomllib.loads(raw.decode())
        except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
            raise FormatError(f"not TOML: {error}", where=name) from error
        top = JsonObject(document, name)
        if isinstance(document.get("registries"), dict):
            raise FormatError(
                "this is version 1 of registries.conf, which is not supported", where=name,
                hint="Rewrite [registries.search] as unqualified-search-registries, and the rest as [[registry]].",
            )  # fmt: skip
        config = self
        if top.has("unqualified-search-registries"):
            search = top.texts("unqualified-search-registries")
            for host in search:
                _location(host, f"{name}.unqualified-search-registries")
            config = replace(config, search=search)
        if top.has("credential-helpers"):
            config = replace(config, credential_helpers=top.texts("credential-helpers") or (AUTH_FILES,))
        mode = top.optional_text("short-name-mode")
        if mode is not None:
            if mode not in _SHORT_NAME_MODES:
                raise top.error("short-name-mode", f"{mode!r:.40} is none of {', '.join(_SHORT_NAME_MODES[1:])}")
            config = replace(config, short_name_mode=mode)
        if top.has("aliases"):
            aliases = {**config.aliases, **top.text_map("aliases")}
            config = replace(config, aliases={short: full for short, full in aliases.items() if full})
        tables = document.get("registry", [])
        if not isinstance(tables, list):
            raise top.error("registry", "must be an array of tables: write [[registry]]")
        found = dict(config.registries)
        for table in json_objects(tables, where=top.place("registry")):
            registry = _read_registry(table)
            found[registry.prefix] = registry
        return replace(config, registries=found)


def is_short_name(text: str) -> bool:
    """Return whether a name leaves its registry open: its part before the first slash is no host."""
    first, slash, _ = text.partition("/")
    return not slash or not (first == "localhost" or "." in first or ":" in first or first != first.lower())


def _read_registry(table: JsonObject) -> Registry:
    location, prefix = table.optional_text("location") or None, table.optional_text("prefix") or None
    if location is None and prefix is None:
        raise table.error("location", "is missing")
    if location is not None:
        location = _location(location, table.place("location"))
    if prefix is None:
        prefix = location or ""
    elif not prefix.startswith("*."):
        prefix = _location(prefix, table.place("prefix"))
    mirrors = []
    for mirror in table.children("mirror"):
        wanted = mirror.optional_text("pull-from-mirror") or "all"
        if wanted not in _PULL_FROM_MIRROR:
            raise mirror.error("pull-from-mirror", f"{wanted!r:.40} is none of {', '.join(_PULL_FROM_MIRROR[1:])}")
        if mirror.has("pull-from-mirror") and table.flag("mirror-by-digest-only"):
            raise mirror.error("pull-from-mirror", "does not go with mirror-by-digest-only")
        place = _location(mirror.text("location"), mirror.place("location"))
        mirrors.append(Mirror(place, mirror.flag("insecure"), wanted))
    return Registry(
        prefix, location, table.flag("insecure"), table.flag("blocked"), table.flag("mirror-by-digest-only"),
        tuple(mirrors),
    )  # fmt: skip


def _location(text: str, where: str) -> str:
    """Return a location as it stands, after checking that a name can begin with it."""
    if "://" in text:
        raise FormatError(f"{text!r:.120} must have no scheme", where=where)
    text = text.rstrip("/")
    host, _, path = text.partition("/")
    try:
        # Apart from each other: together they may be no whole name yet, as docker.io/library is none.
        Reference(host if host != "index.docker.io" else DEFAULT_DOMAIN, "a/b")
        if path:
            Reference.parse(f"localhost/{path}")
    except InvalidReference as error:
        raise FormatError(str(error), where=where) from error
    return text


def _match(prefix: str, text: str) -> int | None:
    """Return where in a name the part ends that a prefix stands for; None if it does not fit.

    A port, a tag or a digest may follow like a component of the path, as containers/image has it.
    """
    if prefix.startswith("*."):
        host = text.partition("/")[0]
        # With the port or without it, as the prefix has it.
        return next((len(name) for name in (host, host.rpartition(":")[0]) if name.endswith(prefix[1:])), None)
    end = len(prefix)
    return end if text.startswith(prefix) and text[end : end + 1] in ("", ":", "/", "@") else None


def _moved(reference: Reference, prefix: str, location: str) -> Reference:
    """Return a reference with the location in place of what the prefix stands for."""
    text = str(reference)
    wanted = location + text[_match(prefix, text) :]
    try:
        found = Reference.parse(wanted)
        if str(found) != wanted:
            raise InvalidReference(f"not a canonical name: {wanted!r:.120}")
    except InvalidReference as error:
        raise FormatError(f"location {location!r:.120} makes no name of {reference.name}: {error}") from error
    # A prefix with a tag takes it away.
    return found if found.tag or found.digest else replace(found, tag=reference.tag, digest=reference.digest)
