"""One repository of a registry: manifests, blobs, tags and referrers, by the distribution protocol.

Sources: OCI distribution-spec v1.1; docker registry HTTP API v2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from layerfs.errors import (
    DigestMismatch,
    FormatError,
    IntegrityError,
    InvalidReference,
    LimitExceeded,
    NotFound,
    RegistryError,
)
from layerfs.formats.digest import Digest
from layerfs.formats.document import MAX_DOCUMENT_SIZE, JsonObject, parse_document
from layerfs.formats.media_type import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, SCHEMA_1_TYPES, document_kind
from layerfs.formats.oci import Descriptor, Index, Manifest, check_blob, parse_manifest_or_index
from layerfs.formats.reference import is_tag
from layerfs.registry.http import HttpResponse, resolve
from layerfs.registry.server import Server

__all__ = ["ReceivedManifest", "Repository"]

_ACCEPT = ", ".join([*sorted(MANIFEST_TYPES), *sorted(INDEX_TYPES), *sorted(SCHEMA_1_TYPES), "application/json"])

#: Tags asked for at a time.
_PAGE = 1000

#: Pages of a list; a registry that always names another one is broken.
_MAX_PAGES = 10_000

#: Bytes of one page of tags.
_MAX_LIST = 16 << 20

#: Bytes of a header with links.
_MAX_LINKS = 16 << 10

_NEXT = re.compile(r'\s*;.*\brel="?next"?(?![\w-])')

#: Types that a server says when it says nothing.
_VAGUE = frozenset({"", "application/json", "application/octet-stream", "text/plain"})


@dataclass(frozen=True, slots=True)
class ReceivedManifest:
    """A manifest or index as a registry sent it: its bytes, their digest, the type announced ("" for none)."""

    raw: bytes
    digest: Digest
    media_type: str


class Repository:
    """One repository. Thread-safe.

    Attributes:
        server: its registry.
        path: its name there.
    """

    def __init__(self, server: Server, path: str) -> None:
        """Name a repository; nothing is sent."""
        self.server = server
        self.path = path
        self._pull = (f"repository:{path}:pull",)
        self._push = (f"repository:{path}:pull,push",)
        self._delete = (f"repository:{path}:pull,push,delete",)

    @property
    def name(self) -> str:
        """Its full name."""
        return f"{self.server.domain}/{self.path}"

    @property
    def push_scopes(self) -> tuple[str, ...]:
        """What a token has to allow for writing."""
        return self._push

    def target(self, rest: str) -> str:
        """Return the path of something in this repository."""
        return f"/v2/{self.path}/{rest}"

    def manifest(self, reference: str | Digest, *, attempts: int | None = None) -> ReceivedManifest:
        """Get a manifest or index by tag or digest.

        Args:
            reference: the one or the other.
            attempts: how often to try.

        Raises:
            NotFound: there is none.
            DigestMismatch: it is not what the digest, or the registry's own header, promises.
            LimitExceeded: it is larger than documents may be.
            RegistryError: the registry answers something else.
        """
        what = f"manifest {self._called(reference)}"
        with self.server.send(
            "GET", self.target(f"manifests/{reference}"), what=what, scopes=self._pull, headers={"Accept": _ACCEPT},
            attempts=attempts,
        ) as answer:  # fmt: skip
            raw = answer.read_all(MAX_DOCUMENT_SIZE, what)
            media_type = (answer.header("Content-Type") or "").partition(";")[0].strip().lower()
            promised = answer.header("Docker-Content-Digest")
        if document_kind(media_type) is None and media_type not in _VAGUE:
            raise RegistryError(
                f"{self.server.domain} answers {self.server.authorizer.clean(media_type)!r:.80} for {what}"
            )
        expected = reference if isinstance(reference, Digest) else None
        if expected is None and promised:
            try:
                expected = Digest.parse(promised.strip())
            except InvalidReference:
                said = self.server.authorizer.clean(promised)
                raise RegistryError(f"{self.server.domain} promises no digest for {what}: {said!r:.80}") from None
        digest = Digest.of(raw, expected.algorithm if expected is not None else "sha256")
        if expected is not None and digest != expected:
            raise DigestMismatch(what, expected=str(expected), actual=str(digest), size=len(raw))
        return ReceivedManifest(raw, digest, "" if media_type in _VAGUE else media_type)

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """Get a small blob whole, verified.

        Raises:
            IntegrityError: it is not what the descriptor promises.
            LimitExceeded: it is larger than documents may be.
        """
        if descriptor.size > MAX_DOCUMENT_SIZE:
            raise LimitExceeded(
                f"{what} {descriptor.digest} has {descriptor.size} bytes, more than {MAX_DOCUMENT_SIZE}"
            )
        with self.blob(descriptor.digest) as answer:
            raw = answer.read_all(MAX_DOCUMENT_SIZE, what)
        check_blob(raw, descriptor, what)
        return raw

    def described(self, descriptor: Descriptor) -> bytes:
        """Get a manifest, an index or a config, verified. Raises as :meth:`manifest` and :meth:`document`."""
        if document_kind(descriptor.media_type) in (None, "config"):
            return self.document(descriptor, "config")
        raw = self.manifest(descriptor.digest).raw
        check_blob(raw, descriptor, "manifest")
        return raw

    def blob(self, digest: Digest, *, start: int = 0, attempts: int | None = None) -> HttpResponse:
        """Ask for a blob; the caller reads and closes it.

        Args:
            digest: its digest.
            start: the first byte wanted. The answer may begin at 0 all the same: status 200, not 206.
            attempts: how often to try.

        Raises:
            NotFound: there is none.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self.server.send(
            "GET", self.target(f"blobs/{digest}"), what=f"blob {digest} of {self.path}", scopes=self._pull,
            headers=headers, expect=(200, 206, 416) if start else (200,), attempts=attempts,
        )  # fmt: skip

    def blob_size(self, digest: Digest, *, push: bool = False) -> int | None:
        """Return the size of a blob, -1 if the registry does not say it, None if it has no such blob."""
        scopes = self._push if push else self._pull
        try:
            answer = self.server.send(
                "HEAD", self.target(f"blobs/{digest}"), what=f"blob {digest} of {self.path}", scopes=scopes
            )
        except NotFound:
            return None
        with answer:
            return -1 if answer.length is None else answer.length

    def has_manifest(self, digest: Digest) -> bool:
        """Return whether the repository has a manifest."""
        try:
            self.server.send(
                "HEAD", self.target(f"manifests/{digest}"), what=f"manifest {digest} of {self.path}", scopes=self._pull,
                headers={"Accept": _ACCEPT},
            ).close()  # fmt: skip
        except NotFound:
            return False
        return True

    def put_manifest(self, reference: str | Digest, raw: bytes, media_type: str) -> Digest:
        """Put a manifest or index under a tag or its digest; return the digest.

        One with a subject is found by :meth:`referrers` from then on.

        Raises:
            IntegrityError: the registry says that it has stored something else.
            RegistryError: it refuses, or, once the manifest is there, the list of what refers to its subject.
        """
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        digest = Digest.of(raw, algorithm)
        what = f"manifest {self._called(reference)}"
        with self.server.send(
            "PUT", self.target(f"manifests/{reference}"), what=what, scopes=self._push,
            headers={"Content-Type": media_type}, body=raw, expect=(201, 202, 200),
        ) as answer:  # fmt: skip
            self.check_stored(answer, digest, what)
            knows_subjects = answer.header("OCI-Subject") is not None
        if not knows_subjects and b'"subject"' in raw:
            self._list_referrer(parse_manifest_or_index(raw, algorithm=algorithm))
        return digest

    def delete_manifest(self, reference: str | Digest) -> None:
        """Delete a manifest by digest, or a tag where the registry can.

        Raises:
            NotFound: there is none.
            RegistryError: the registry does not allow it.
        """
        self.server.send(
            "DELETE", self.target(f"manifests/{reference}"), what=f"deleting manifest {self._called(reference)}",
            missing=f"manifest {self._called(reference)}",
            scopes=self._delete, expect=(202, 200, 204),
        ).close()  # fmt: skip

    def tags(self) -> Iterator[str]:
        """Yield the tags, in the registry's order, page by page.

        Raises:
            NotFound: there is no such repository.
            RegistryError: a page is broken, or pages do not end.
        """
        what = f"tags of {self.name}"
        for page in self._pages(f"tags/list?n={_PAGE}", what):
            try:
                tags = page.texts("tags")
            except FormatError as error:
                raise RegistryError(f"{self.server.domain} answers nonsense for {what}: {error}") from error
            for tag in tags:
                if not is_tag(tag):  # it goes to a terminal
                    raise RegistryError(f"{self.server.domain} answers nonsense for {what}: {tag[:80]!r}")
                yield tag

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return what refers to a manifest: signatures, attestations and the like.

        Registries without the API are asked for the tag that stands in for it.

        Args:
            digest: of the manifest.
            artifact_type: only those of this type.

        Source: OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".
        """
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        found: list[Descriptor] = []
        try:
            for page in self._pages(f"referrers/{digest}{query}", f"referrers of {digest}", accept=OCI_INDEX):
                found += [Descriptor.parse(entry) for entry in page.children("manifests")]
        except (NotFound, RegistryError) as error:
            if isinstance(error, RegistryError) and error.status not in (400, 405, 501):
                raise
            try:
                found = list(Index.parse(self.manifest(_referrers_tag(digest)).raw).manifests)
            except NotFound:
                return []
        return [entry for entry in found if artifact_type is None or entry.artifact_type == artifact_type]

    def _list_referrer(self, document: Manifest | Index) -> None:
        """Enter a manifest in the list that stands in for the API of referrers where a registry has none.

        Two that do so at once may lose one of the entries, as the specification has it.

        Source: OCI distribution-spec v1.1, "Pushing Manifests with Subject".
        """
        if document.subject is None:
            return
        tag = _referrers_tag(document.subject.digest)
        entries: list[Any] = []
        try:
            listed = Index.parse(self.manifest(tag).raw)
        except NotFound:
            pass
        else:
            if any(entry.digest == document.digest for entry in listed.manifests):
                return
            entries = json.loads(listed.raw)["manifests"]
        kind = document.artifact_type or (document.config.media_type if isinstance(document, Manifest) else None)
        entry = {"mediaType": document.media_type, "digest": str(document.digest), "size": len(document.raw)}
        entry |= {"artifactType": kind} if kind else {}
        entry |= {"annotations": dict(document.annotations)} if document.annotations else {}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, entry]}
        self.put_manifest(tag, json.dumps(index, separators=(",", ":")).encode(), OCI_INDEX)

    def check_stored(self, answer: HttpResponse, digest: Digest, what: str) -> None:
        """Compare what the registry says that it has stored with what it should have.

        Raises:
            IntegrityError: it says something else.
        """
        said = (answer.header("Docker-Content-Digest") or "").strip()
        if said and said != str(digest) and said.partition(":")[0] == digest.algorithm:
            said = self.server.authorizer.clean(said)
            raise IntegrityError(f"{self.server.domain} has stored {what} as {said:.140}, not {digest}")

    def _pages(self, rest: str, what: str, accept: str = "application/json") -> Iterator[JsonObject]:
        target = self.target(rest)
        seen = set()
        for _ in range(_MAX_PAGES):
            with self.server.send(
                "GET", target, what=what, scopes=self._pull, headers={"Accept": accept},
                missing=f"repository {self.path}",
            ) as answer:  # fmt: skip
                raw = answer.read_all(_MAX_LIST, what)
                place, url = _next_page(answer.header("Link") or ""), answer.url
            try:
                yield JsonObject(parse_document(raw, "list", _MAX_LIST))
            except FormatError as error:
                raise RegistryError(f"{self.server.domain} answers nonsense for {what}: {error}") from error
            if place is None:
                return
            # A registry behind a proxy may call itself something else here: its path counts.
            parts = urlsplit(resolve(url, place))
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            if target in seen:
                raise RegistryError(f"{self.server.domain} sends {what} in a circle")
            seen.add(target)
        raise RegistryError(f"{self.server.domain} sends {what} in more than {_MAX_PAGES} pages")

    def _called(self, reference: str | Digest) -> str:
        return f"{self.path}{'@' if isinstance(reference, Digest) else ':'}{reference}"


def _next_page(header: str) -> str | None:
    """Return the place of the next page that links name, if any.

    Raises:
        RegistryError: the header is longer than any that names pages.

    Source: RFC 8288, section 3.
    """
    if len(header) > _MAX_LINKS:
        raise RegistryError(f"a header with links has {len(header)} bytes, more than {_MAX_LINKS}")
    for link in header.split("<")[1:]:
        place, _, rest = link.partition(">")
        if _NEXT.match(rest.partition(",")[0]):
            return place
    return None


def _referrers_tag(digest: Digest) -> str:
    """Return the tag of the list of what refers to a manifest, on registries without the API for it."""
    return f"{digest.algorithm}-{digest.hex[:64]}"
