"""Images on registries: from what a user wrote to repositories to ask, and from there to what has to be fetched.

Documents that the store has already are not asked for again: their digests name them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from layerfs.errors import (
    Denied,
    FormatError,
    LayerfsError,
    NotFound,
    StoreError,
)
from layerfs.formats.digest import Digest
from layerfs.formats.oci import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_layer_count,
    check_media_type,
    parse_manifest_or_index,
)
from layerfs.formats.policy import Policy, reference_scopes
from layerfs.formats.reference import Reference
from layerfs.formats.registries_conf import RegistriesConfig
from layerfs.registry.access import Access
from layerfs.registry.choice import MAX_IMAGES, MAX_NESTING, choose_entry, require_platform
from layerfs.registry.credential import Credentials
from layerfs.registry.http import HttpClient
from layerfs.registry.plan import ImagePlan, LayerPlan, Selection
from layerfs.registry.proxy import is_loopback
from layerfs.registry.repository import ReceivedManifest, Repository
from layerfs.registry.server import Server
from layerfs.store.handle import StoreHandle

__all__ = ["Registries", "RemoteImages", "find_remote", "from_first", "parse_received", "plan_remote"]

_log = logging.getLogger(__name__)


class Registries:
    """The registries that one command talks to. Thread-safe; closed by :meth:`open`'s block.

    Attributes:
        access: how they are reached.
        http: their connections.
        config: registries.conf.
    """

    def __init__(self, access: Access, http: HttpClient, check: Callable[[], None] | None) -> None:
        """Read the configuration; use :meth:`open`."""
        self.access = access
        self.http = http
        self.config: RegistriesConfig = access.read_registries()
        self._credentials = Credentials(access, self.config.credential_helpers)
        self._check = check
        self._servers: dict[tuple[str, str, bool], Server] = {}
        #: The registry that gets the credential or token that came with the command: the first one that was named.
        self._named: str | None = None

    @classmethod
    @contextmanager
    def open(cls, access: Access, check: Callable[[], None] | None = None) -> Iterator[Registries]:
        """Yield registries whose connections end with the block.

        Args:
            access: how they are reached.
            check: polled while waiting to try again.

        Raises:
            FormatError: a configuration file is broken.
        """
        with HttpClient(access) as http:
            yield cls(access, http, check)

    def names(self, text: str) -> list[Reference]:
        """Return what a name may mean, in order; see :meth:`RegistriesConfig.expand`."""
        return self.config.expand(text)

    def read_from(self, reference: Reference) -> list[Repository]:
        """Return the repositories that an image may be read from: mirrors first.

        Raises:
            Denied: its registry is blocked.
        """
        endpoints = self.config.endpoints(reference)
        self._named = self._named or endpoints[-1].reference.domain
        return [self._repository(endpoint.reference, insecure=endpoint.insecure) for endpoint in endpoints]

    def write_to(self, reference: Reference) -> Repository:
        """Return the repository itself: mirrors, and other locations, are for reading alone.

        Raises:
            Denied: its registry is blocked.

        Source: containers-registries.conf(5), "Remapping and mirroring registries".
        """
        registry = self.config.find(f"{reference.domain}/{reference.path}")
        self._named = self._named or reference.domain
        return self._repository(reference, insecure=registry is not None and registry.insecure)

    def server(self, domain: str) -> Server:
        """Return a registry without a repository.

        Raises:
            Denied: it is blocked.
        """
        registry = self.config.find(domain)
        self._named = self._named or domain
        return self._server(domain, "", insecure=registry is not None and registry.insecure)

    def _repository(self, reference: Reference, *, insecure: bool) -> Repository:
        return Repository(self._server(reference.domain, reference.path, insecure=insecure), reference.path)

    def _server(self, domain: str, path: str, *, insecure: bool) -> Server:
        verify = self.access.verify_tls
        allowed = insecure if verify is None else not verify
        # As docker does: what this machine's own registries say leaves it for nobody to read.
        plain = verify is None and is_loopback(domain)
        key = (domain, path, allowed)
        if key not in self._servers:
            self._servers[key] = Server(
                self.http, self.access, domain, self._credentials,
                path=path, insecure=allowed, plain=plain,
                named=domain == self._named, check=self._check,
            )  # fmt: skip
        return self._servers[key]


@dataclass(frozen=True, slots=True)
class RemoteImages:
    """What a name on a registry means.

    Attributes:
        reference: its canonical name.
        repositories: where its blobs may be had, the one that answered first.
        images: one for each platform that was asked for.
        received: the document under the name: a manifest or an index.
    """

    reference: Reference
    repositories: tuple[Repository, ...]
    images: tuple[ImagePlan, ...]
    received: ReceivedManifest


def find_remote(
    registries: Registries, text: str, policy: Policy | None = None
) -> tuple[Reference, list[Repository], ReceivedManifest]:
    """Get the document under a name, from the first place that has it.

    Args:
        registries: what to ask.
        text: the name, as a user wrote it.
        policy: what has to let each image in that the name may mean; None lets all in.

    Returns:
        The canonical name that was found, the repositories with the one that answered first, and the document.

    Raises:
        NotFound: no place has it.
        Denied: the policy, or all places, refuse.
        RegistryError: no place answers. The error is that of a registry itself, the first one that says more than that
            it has no such image; what mirrors and other registries said stands behind it.
    """
    own: list[LayerfsError] = []
    others: list[LayerfsError] = []
    for reference in registries.names(text):
        if policy is not None:
            policy.check("docker", reference_scopes(reference), str(reference))
        try:
            places = registries.read_from(reference)
        except Denied as error:
            own.append(error)
            continue
        for position, repository in enumerate(places):
            is_last = position == len(places) - 1
            wanted: str | Digest = reference.digest or reference.tag or "latest"
            try:
                # A mirror may lack it, be down or broken; only the registry itself is worth waiting for.
                received = repository.manifest(wanted, attempts=None if is_last else 1)
            except LayerfsError as error:
                (own if is_last else others).append(error)
                continue
            return reference, [repository, *places[:position], *places[position + 1 :]], received
    failure = next((error for error in own if not isinstance(error, NotFound)), own[-1])
    others += [error for error in own if error is not failure]
    raise failure.extended(f" (also tried: {'; '.join(map(str, others))})") if others else failure


def plan_remote(
    handle: StoreHandle, registries: Registries, text: str, selection: Selection, policy: Policy | None
) -> RemoteImages:
    """Find out what a name means and what has to be fetched for it.

    Args:
        handle: the store, which may have documents already.
        registries: what to ask.
        text: the name.
        selection: which platforms are wanted.
        policy: the trust policy, or None.

    Raises:
        NotFound: there is no such image, or none for the platform.
        FormatError: a document is broken, or of a kind that cannot be mounted.
        IntegrityError: a document is not what its digest promises.
        RegistryError: as :func:`find_remote`.
    """
    reference, places, received = find_remote(registries, text, policy)
    planner = _Planner(handle, reference, places, selection)
    document = parse_received(received)
    images = tuple(planner.expand(document, received.digest, 0))
    return RemoteImages(reference, tuple(places), images, received)


def parse_received(received: ReceivedManifest) -> Manifest | Index:
    """Read what a registry sent, and check that it is what it was announced as.

    Raises:
        FormatError: it is not.
    """
    document = parse_manifest_or_index(received.raw, algorithm=received.digest.algorithm)
    if received.media_type:
        announced = Descriptor(received.media_type, received.digest, len(received.raw))
        check_media_type(document, announced, where="Content-Type")
    return document


def from_first(places: Sequence[Repository], ask: Callable[[Repository], bytes]) -> bytes:
    """Return what the first place that can answer does: a mirror may have a name and lack what that names.

    Raises:
        LayerfsError: none can; what the first one said.
    """
    failure: LayerfsError | None = None
    for place in places:
        try:
            return ask(place)
        except LayerfsError as error:
            failure = failure or error
    assert failure is not None, "there is at least the registry itself"
    raise failure


class _Planner:
    """Follows a document to its images."""

    def __init__(
        self, handle: StoreHandle, reference: Reference, places: list[Repository], selection: Selection
    ) -> None:
        self._handle = handle
        self._reference = reference
        self._places = places
        self._selection = selection
        self._count = 0

    def expand(self, document: Manifest | Index, asked: Digest | None, depth: int) -> Iterator[ImagePlan]:
        """Yield the images of a document; ``asked`` is what the user's name means, if it means this one."""
        if isinstance(document, Manifest):
            yield self._image(document, asked)
            return
        if depth > MAX_NESTING:
            raise FormatError(f"indexes are nested more than {MAX_NESTING} deep")
        entries = list(document.images)
        if not entries:
            raise FormatError(f"index {document.digest} lists no image")
        if not self._selection.all_platforms:
            entries = [choose_entry(entries, self._selection.platform, self._document)]
        for position, entry in enumerate(entries):
            inner = parse_manifest_or_index(self._document(entry), algorithm=entry.digest.algorithm)
            check_media_type(inner, entry)
            # Of several images under one name it means the one for this machine, or else the first.
            own = self._selection.platform
            chosen = [other.platform is not None and own.matches(other.platform) for other in entries]
            named = position == (chosen.index(True) if True in chosen else 0)
            yield from self.expand(inner, asked if named else None, depth + 1)

    def _image(self, manifest: Manifest, asked: Digest | None) -> ImagePlan:
        self._count += 1
        if self._count > MAX_IMAGES:
            raise FormatError(f"index has more than {MAX_IMAGES} images")
        manifest.check_image()
        config = ImageConfig.parse(self._document(manifest.config), algorithm=manifest.config.digest.algorithm)
        check_layer_count(manifest, config)
        wanted = self._selection
        if wanted.platform_required and not wanted.all_platforms:
            require_platform(wanted.platform, config.platform)
        fits = wanted.platform.matches(config.platform) or config.platform.is_unknown
        if not fits and not wanted.all_platforms and not wanted.platform_required:
            _log.warning("%s is for %s, and this machine is %s", self._reference, config.platform, wanted.platform)
        layers = tuple(
            LayerPlan(str(blob.digest), diff_id, blob)
            for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        # A name by digest gives no tag: it must not take one away from another image.
        name = self._selection.name or (self._reference if self._reference.digest is None else None)
        names = (name,) if asked is not None and name is not None else ()
        by_digest = self._reference.digest is not None and self._selection.name is None
        origin = (self._reference.name, asked or manifest.digest, by_digest)
        return ImagePlan(config, (manifest.digest, manifest.raw), layers, names, origin)

    def _document(self, descriptor: Descriptor) -> bytes:
        """Return a manifest, an index or a config."""
        known = self._known(descriptor)
        return known if known is not None else from_first(self._places, lambda place: place.described(descriptor))

    def _known(self, descriptor: Descriptor) -> bytes | None:
        """Return a document that the store has, verified."""
        try:
            raw = self._handle.read_blob(descriptor.digest)
        except StoreError:
            return None
        return raw if len(raw) == descriptor.size else None
