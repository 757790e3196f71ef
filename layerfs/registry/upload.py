"""Putting blobs into a repository: in one request when digest and size are known, else in chunks.

A chunk that was cut off is continued where the registry says that it stands. After each upload the registry is asked
for digest and size of what it has.

Source: OCI distribution-spec v1.1, "Pushing Blobs"; docker registry HTTP API v2, "Chunked Upload".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlencode

from layerfs.errors import DigestMismatch, IntegrityError, NotFound, RegistryError
from layerfs.formats.digest import Digest, new_hash
from layerfs.registry.access import Access
from layerfs.registry.http import HttpResponse, noted, resolve
from layerfs.registry.repository import Repository
from layerfs.registry.retry import Backoff

__all__ = ["Uploader"]

#: Bytes of one chunk, held in memory until the registry has it.
_CHUNK = 8 << 20

#: The largest chunk that a registry may ask for at least.
_MAX_CHUNK = 64 << 20

#: Bytes handed to the connection at a time.
_PIECE = 1 << 18

#: What is missing where an upload cannot be begun.
_REPOSITORY = "repository"

_OCTETS = "application/octet-stream"

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})", re.ASCII)


class Uploader:
    """Uploads blobs to one repository. Thread-safe."""

    def __init__(self, repository: Repository, access: Access, check: Callable[[], None]) -> None:
        """Prepare.

        Args:
            repository: where to.
            access: how often to try.
            check: polled while bytes are sent.
        """
        self._to = repository
        self._access = access
        self._check = check

    def mount(self, digest: Digest, source: str) -> bool:
        """Let a blob of another repository of the same registry be here too; return whether that worked."""
        query = urlencode({"mount": str(digest), "from": source})
        scopes = (*self._to.push_scopes, f"repository:{source}:pull")
        try:
            answer = self._to.server.send(
                "POST", self._to.target(f"blobs/uploads/?{query}"), what=f"mounting blob {digest} in {self._to.path}",
                scopes=scopes, headers={"Content-Length": "0"}, expect=(201, 202), attempts=1,
            )  # fmt: skip
        except (RegistryError, NotFound):
            # Whatever it does not like, such as a repository that we may not read: the bytes can be sent instead.
            return False
        with answer:
            if answer.status == 201:
                return True
            self._give_up(answer)
        return False

    def put(
        self, digest: Digest, size: int, pieces: Callable[[], Iterable[bytes]], tell: Callable[[int], None]
    ) -> None:
        """Upload a blob whose digest and size are known, in one request.

        Args:
            digest: of the blob.
            size: in bytes.
            pieces: yields the blob from its start, each time.
            tell: told how many bytes were sent.

        Raises:
            RegistryError: it was refused, or broke off too often.
            IntegrityError: the registry has something else.
        """
        tries = Backoff(self._access.attempts, self._access.retry_delay, self._check)
        what = f"uploading blob {digest} to {self._to.path}"
        broken: list[Exception] = []

        def body() -> Iterator[bytes]:
            sent = 0
            for piece in noted(pieces(), broken):
                for start in range(0, len(piece), _PIECE):
                    self._check()
                    part = piece[start : start + _PIECE]
                    yield part
                    sent += len(part)
                    tell(sent)

        while True:
            try:
                place = self._begin(attempts=1)[0]
                joint = "&" if "?" in place else "?"
                with self._to.server.send(
                    "PUT", f"{place}{joint}{urlencode({'digest': str(digest)})}", what=what,
                    scopes=self._to.push_scopes, headers={"Content-Length": str(size), "Content-Type": _OCTETS},
                    body=body, expect=(201, 204), attempts=1,
                ) as answer:  # fmt: skip
                    self._to.check_stored(answer, digest, what)
                break
            except RegistryError as error:
                if error in broken:
                    raise  # of where the bytes come from, which has tried for itself
                tries.wait(error)
            except NotFound as error:
                if error in broken or error.kind == _REPOSITORY:
                    raise
                # The upload is gone that was begun a moment ago: a registry that was started anew.
                tries.wait(RegistryError(f"{self._to.server.domain}: the upload is gone", temporary=True))
        self._verify(digest, size)

    def put_stream(self, pieces: Iterable[bytes]) -> tuple[Digest, int]:
        """Upload a blob of which only the bytes are known, in chunks; return its digest, a SHA-256, and size.

        Args:
            pieces: yields the blob, once.

        Raises:
            NotFound: there is no such repository.
            RegistryError: it was refused, or broke off too often.
            IntegrityError: the registry has something else.
        """
        hasher, size = new_hash("sha256"), 0
        place, least = self._begin()
        buffer: list[bytes] = []
        waiting = 0
        limit = min(max(_CHUNK, least), _MAX_CHUNK)
        for piece in pieces:
            self._check()
            hasher.update(piece)
            buffer.append(piece)
            waiting += len(piece)
            if waiting >= limit:
                place = self._chunk(place, size, b"".join(buffer))
                size += waiting
                buffer, waiting = [], 0
        if waiting:
            place = self._chunk(place, size, b"".join(buffer))
            size += waiting
        digest = Digest("sha256", hasher.hexdigest())
        joint = "&" if "?" in place else "?"
        what = f"uploading blob {digest} to {self._to.path}"
        with self._to.server.send(
            "PUT", f"{place}{joint}{urlencode({'digest': str(digest)})}", what=what, scopes=self._to.push_scopes,
            headers={"Content-Length": "0", "Content-Type": _OCTETS}, body=b"", expect=(201, 204), missing="upload",
        ) as answer:  # fmt: skip
            self._to.check_stored(answer, digest, what)
        self._verify(digest, size)
        return digest, size

    def _begin(self, *, attempts: int | None = None) -> tuple[str, int]:
        """Start an upload; return its place and the smallest chunk that the registry takes."""
        with self._to.server.send(
            "POST", self._to.target("blobs/uploads/"), what=f"uploading to {self._to.path}",
            scopes=self._to.push_scopes, headers={"Content-Length": "0"}, expect=(202,), attempts=attempts,
            missing=f"{_REPOSITORY} {self._to.path}",
        ) as answer:  # fmt: skip
            least = answer.header("OCI-Chunk-Min-Length") or ""
            return self._place(answer), int(least) if least.isascii() and least.isdigit() and len(least) < 12 else 0

    def _chunk(self, place: str, start: int, data: bytes) -> str:
        """Send a chunk, as often as it takes; return the place for the next one."""
        tries = Backoff(self._access.attempts, self._access.retry_delay, self._check)
        done = 0
        while done < len(data):
            part = data[done:]
            first = start + done
            headers = {
                "Content-Type": _OCTETS, "Content-Length": str(len(part)),
                "Content-Range": f"{first}-{first + len(part) - 1}",
            }  # fmt: skip
            try:
                with self._to.server.send(
                    "PATCH", place, what=f"uploading to {self._to.path}", scopes=self._to.push_scopes, missing="upload",
                    headers=headers, body=lambda part=part: _cut(part), expect=(202, 201, 204), attempts=1,
                ) as answer:  # fmt: skip
                    place = self._place(answer)
                    taken = _RANGE.fullmatch((answer.header("Range") or "").strip())
                    last = int(taken[1]) if taken is not None else 0  # "0-0" may be nothing; see _ask
                    stands = last + 1 if last else 0
                    if first < stands < first + len(part):  # it took a part of it
                        done = stands - start
                        continue
                    return place
            except RegistryError as error:
                # 416: it stands elsewhere than thought. Both are settled by asking.
                if error.status != 416:
                    tries.wait(error)
                elif not tries.count():
                    raise
            place, stands = self._ask(place)
            if not start <= stands <= start + len(data):
                raise RegistryError(f"{self._to.server.domain} has lost the upload at byte {stands}")
            done = stands - start
        return place

    def _ask(self, place: str) -> tuple[str, int]:
        """Ask where an upload stands; return its place and how many bytes the registry has."""
        with self._to.server.send(
            "GET", place, what="upload", scopes=self._to.push_scopes, expect=(204, 202, 200)
        ) as answer:
            found = _RANGE.fullmatch((answer.header("Range") or "").strip())
            # "0-0" is what registries say for nothing as well as for one byte; chunks are never one byte.
            last = int(found[1]) if found is not None else 0
            return self._place(answer, place), last + 1 if last else 0

    def _place(self, answer: HttpResponse, default: str = "") -> str:
        place = answer.header("Location") or default
        if not place:
            raise RegistryError(f"{self._to.server.domain} does not say where to upload to", status=answer.status)
        return resolve(answer.url, place)

    def _give_up(self, answer: HttpResponse) -> None:
        """End an upload that is not needed; what a registry does not end itself it drops after a while."""
        try:
            place = self._place(answer)
            self._to.server.send(
                "DELETE", place, what="an upload", scopes=self._to.push_scopes, expect=(204, 202, 200), attempts=1
            ).close()
        except (RegistryError, NotFound):
            return

    def _verify(self, digest: Digest, size: int) -> None:
        stored = self._to.blob_size(digest, push=True)
        if stored is None:
            raise IntegrityError(f"{self._to.server.domain} does not have blob {digest} after taking it")
        if stored not in (-1, size):
            raise DigestMismatch(
                f"blob on {self._to.server.domain}", expected=f"{digest} ({size} bytes)",
                actual="of another size", size=stored,
            )  # fmt: skip


def _cut(data: bytes) -> Iterator[bytes]:
    """Yield bytes in pieces, so that each of them extends the deadline."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]
