"""Copies images from place to place as they are: same documents, blobs and digests, no store in between.

A source gives documents and blobs by descriptor, a target takes them; every byte is digested on its way, and a name on
a target moves when everything that it needs is there. What would need other bytes, such as a docker archive with its
uncompressed layers, is not for here. A docker image that goes to a place for OCI images gets a manifest of that form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from layerfs.errors import DigestMismatch, FormatError, IntegrityError, NotFound
from layerfs.formats.codec import decompress, detect
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.image_layout import (
    IMAGE_NAME,
    LAYOUT,
    REF_NAME,
    MemberDirectories,
    blob_path,
    encode_index,
    member_header,
    name_of,
)
from layerfs.formats.media_type import DOCKER_INDEX, DOCKER_MANIFEST, is_foreign_layer
from layerfs.formats.oci import (
    Descriptor,
    Index,
    Manifest,
    check_blob,
    check_media_type,
    parse_manifest_or_index,
)
from layerfs.formats.oci_form import as_oci, index_as_oci
from layerfs.formats.platform import Platform
from layerfs.formats.reference import Reference
from layerfs.formats.tar.header import BLOCK
from layerfs.formats.tar.writer import END, padding
from layerfs.linux.durable import make_directories, write_document
from layerfs.registry.access import Access
from layerfs.registry.choice import MAX_IMAGES, MAX_NESTING, choose_entry
from layerfs.registry.download import Receiver
from layerfs.registry.image_directory import VERSION, blob_file
from layerfs.registry.layout_directory import LayoutDirectory, has_others, put_blob
from layerfs.registry.members import Members, chunks, read_document
from layerfs.registry.plan import LayerPlan, Selection, plan_images, synthesize_manifest
from layerfs.registry.remote import Registries, find_remote, from_first, parse_received
from layerfs.registry.repository import Repository
from layerfs.registry.target import Target
from layerfs.registry.upload import Uploader

__all__ = [
    "ArchiveTarget",
    "CopyPlan",
    "CopySource",
    "CopyTarget",
    "DirectoryTarget",
    "LayoutTarget",
    "MemberSource",
    "RegistrySource",
    "RegistryTarget",
    "in_oci_form",
    "plan_copy",
    "verified",
]

_READ = 1 << 20


class CopySource(Protocol):
    """Where an image comes from."""

    def top(self) -> Manifest | Index:
        """Return the document under the name that was asked for."""

    def document(self, descriptor: Descriptor) -> bytes:
        """Return a manifest, an index or a config, verified."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob; its digest is for the caller."""


class CopyTarget(Protocol):
    """Where an image goes. ``parallel`` says whether blobs may come several at a time."""

    parallel: bool

    def has(self, blob: Descriptor) -> bool:
        """Return whether a blob is there."""

    def put_blob(self, blob: Descriptor, pieces: Callable[[], Iterable[bytes]]) -> None:
        """Take a blob; ``pieces`` yields it from the start each time, and raises when it is not what it should be."""

    def put_manifest(self, document: Manifest | Index, *, top: bool) -> None:
        """Take a manifest whose blobs are there; ``top`` is the one that gets the name, and comes last."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What is copied: blobs, then the documents in this order, the last of which gets the name."""

    blobs: tuple[Descriptor, ...]
    documents: tuple[Manifest | Index, ...]


def plan_copy(source: CopySource, platform: Platform, *, everything: bool) -> CopyPlan:
    """Find out what an image consists of.

    Args:
        source: where it is.
        platform: which image of an index.
        everything: the whole index instead.

    Raises:
        FormatError: a document is broken.
        NotFound: there is no image for the platform.
    """
    top = source.top()
    documents: dict[Digest, Manifest | Index] = {}
    blobs: dict[Digest, Descriptor] = {}

    def visit(document: Manifest | Index, depth: int) -> None:
        if isinstance(document, Manifest):
            for blob in (document.config, *document.layers):
                # Foreign layers are where their URLs say, and on no registry.
                if not (blob.urls and is_foreign_layer(blob.media_type)):
                    blobs.setdefault(blob.digest, blob)
        elif depth > MAX_NESTING:
            raise FormatError(f"indexes are nested more than {MAX_NESTING} deep")
        else:
            for entry in document.manifests:
                inner = parse_manifest_or_index(source.document(entry), algorithm=entry.digest.algorithm)
                check_media_type(inner, entry)
                visit(inner, depth + 1)
        documents.setdefault(document.digest, document)
        if len(documents) > MAX_IMAGES:
            raise FormatError(f"index has more than {MAX_IMAGES} images")

    depth = 0
    while isinstance(top, Index) and not everything:
        if depth > MAX_NESTING:
            raise FormatError(f"indexes are nested more than {MAX_NESTING} deep")
        depth += 1
        if not top.images:
            raise FormatError(f"index {top.digest} lists no image", hint="Pass --all to copy what it has.")
        entry = choose_entry(top.images, platform, source.document)
        top = parse_manifest_or_index(source.document(entry), algorithm=entry.digest.algorithm)
        check_media_type(top, entry)
    visit(top, 0)
    return CopyPlan(tuple(blobs.values()), tuple(documents.values()))


def in_oci_form(plan: CopyPlan) -> CopyPlan:
    """Return a plan for a target that holds OCI images alone: manifests and lists of docker become such of OCI."""
    forms: dict[Digest, bytes] = {}
    documents: list[Manifest | Index] = []
    for document in plan.documents:  # what an index lists comes before it
        found = document
        if isinstance(document, Index):
            if document.media_type == DOCKER_INDEX or any(entry.digest in forms for entry in document.manifests):
                found = Index.parse(index_as_oci(document.raw, forms), algorithm=document.digest.algorithm)
        elif document.media_type == DOCKER_MANIFEST:
            found = Manifest.parse(as_oci(document.raw), algorithm=document.digest.algorithm)
        if found is not document:
            forms[document.digest] = found.raw
        documents.append(found)
    return CopyPlan(plan.blobs, tuple(documents))


def verified(pieces: Iterable[bytes], blob: Descriptor) -> Iterator[bytes]:
    """Yield pieces, and raise at their end unless they are the blob.

    Raises:
        IntegrityError: the size differs.
        DigestMismatch: the digest does.
    """
    hasher, size = new_hash(blob.digest.algorithm), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        if size > blob.size:
            break
        yield piece
    if size != blob.size:
        raise IntegrityError(f"blob {blob.digest}: {'more than ' if size > blob.size else ''}{size} bytes, expected"
                             f" {blob.size}")  # fmt: skip
    actual = Digest(blob.digest.algorithm, hasher.hexdigest())
    if actual != blob.digest:
        raise DigestMismatch("blob", expected=str(blob.digest), actual=str(actual), size=size)


class RegistrySource:
    """An image on a registry."""

    def __init__(self, registries: Registries, name: str, check: Callable[[], None]) -> None:
        """Ask for its document. Raises as :func:`find_remote`, the trust policy included."""
        _, places, received = find_remote(registries, name, registries.access.read_policy())
        self._places: Sequence[Repository] = places
        self._top = parse_received(received)
        self._access = registries.access
        self._check = check

    def top(self) -> Manifest | Index:
        """See :class:`CopySource`."""
        return self._top

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`CopySource`."""
        return from_first(self._places, lambda place: place.described(descriptor))

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`CopySource`."""
        return Receiver(self._places, descriptor, self._access, self._check).pieces()


class MemberSource:
    """An image in an archive, a layout or a directory."""

    def __init__(self, members: Members, selection: Selection) -> None:
        """Read its documents.

        Raises:
            NotFound: there is no such image.
            FormatError: there are several, and none was chosen; or a document is broken.
        """
        self._members = members
        self._places: dict[Digest, str] = {}
        self._raw_config: bytes | None = None
        index = self._read("index.json") if selection.form != "docker" else None
        if index is not None:
            self._top = self._entry(Index.parse(index), selection)
            return
        plans = plan_images(self._read, selection)
        if len(plans) != 1:
            raise FormatError(f"archive has {len(plans)} images", hint="Name one, or its position as @INDEX.")
        config, layers = plans[0].config, plans[0].layers
        # A docker archive has no manifest, and names its layers by what they are uncompressed.
        _, raw = synthesize_manifest(config, [self._plain_size(layer) for layer in layers])
        self._top = Manifest.parse(raw)
        self._raw_config = config.raw
        self._places = {layer.diff_id: layer.member for layer in layers}

    def top(self) -> Manifest | Index:
        """See :class:`CopySource`."""
        return self._top

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`CopySource`."""
        raw = self._read(blob_path(descriptor.digest))
        if raw is None:
            raise NotFound("blob", str(descriptor.digest), hint="The archive is not complete.")
        check_blob(raw, descriptor, "manifest")
        return raw

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`CopySource`."""
        if self._raw_config is not None and Digest.of(self._raw_config, descriptor.digest.algorithm) == (
            descriptor.digest
        ):
            yield self._raw_config
            return
        name = self._places.get(descriptor.digest) or blob_path(descriptor.digest)
        if not self._members.has(name):
            raise NotFound("blob", str(descriptor.digest), hint="The archive is not complete.")
        # A docker archive calls its layers by what they are uncompressed, and docker itself compresses some.
        yield from self._plain(name) if descriptor.digest in self._places else self._stored(name)

    def _stored(self, name: str) -> Iterator[bytes]:
        """Yield a member's bytes."""
        reader = self._members.open(name)
        try:
            yield from chunks(reader, _READ)
        finally:
            reader.close()

    def _plain(self, name: str) -> Iterator[bytes]:
        """Yield what a member's bytes are when they are uncompressed."""
        codec = self._codec(name)
        if codec == "none":
            yield from self._stored(name)
            return
        reader = self._members.open(name)
        try:
            yield from decompress(reader.read, codec)
        finally:
            reader.close()

    def _codec(self, name: str) -> str:
        reader = self._members.open(name)
        try:
            return detect(reader.read(BLOCK))
        finally:
            reader.close()

    def _entry(self, index: Index, selection: Selection) -> Manifest | Index:
        # As for a load: signatures and the like, which are no images, are not counted beside such.
        entries = list(index.images) or list(index.manifests)
        if selection.position is not None:
            if selection.position >= len(entries):
                raise NotFound("image in the layout", f"@{selection.position}", hint=f"It has {len(entries)}.")
            entries = [entries[selection.position]]
        elif selection.reference is not None:
            fitting = [entry for entry in entries if selection.reference in (entry.ref_name, entry.image_name)]
            if not fitting:
                names = [name for entry in entries if (name := entry.image_name or entry.ref_name)]
                hint = f"There is: {', '.join(names[:20]) or 'nothing with a name'}."
                raise NotFound("image in the layout", selection.reference, hint=hint)
            entries = fitting
        if len({entry.digest for entry in entries}) != 1:
            raise FormatError(
                f"layout has {len(entries)} images", hint="Name one as PATH:NAME, or its position as PATH:@INDEX."
            )
        document = parse_manifest_or_index(self.document(entries[0]), algorithm=entries[0].digest.algorithm)
        check_media_type(document, entries[0])
        return document

    def _plain_size(self, layer: LayerPlan) -> int:
        if self._codec(layer.member) != "none":
            return sum(map(len, self._plain(layer.member)))
        reader = self._members.open(layer.member)
        try:
            return reader.size
        finally:
            reader.close()

    def _read(self, name: str) -> bytes | None:
        return read_document(self._members, name)


class RegistryTarget:
    """A repository on a registry, and a tag in it, or the digest of what is copied."""

    parallel = True

    def __init__(self, repository: Repository, tag: str | Digest, access: Access, check: Callable[[], None]) -> None:
        """Prepare; nothing is sent."""
        self._to = repository
        self._tag = tag
        self._uploader = Uploader(repository, access, check)

    def has(self, blob: Descriptor) -> bool:
        """See :class:`CopyTarget`."""
        return self._to.blob_size(blob.digest, push=True) in (blob.size, -1)

    def put_blob(self, blob: Descriptor, pieces: Callable[[], Iterable[bytes]]) -> None:
        """See :class:`CopyTarget`."""
        self._uploader.put(blob.digest, blob.size, pieces, lambda _: None)

    def put_manifest(self, document: Manifest | Index, *, top: bool) -> None:
        """See :class:`CopyTarget`."""
        self._to.put_manifest(self._tag if top else document.digest, document.raw, document.media_type)


class LayoutTarget:
    """An OCI layout in a directory, made if it is not there; ``name`` is what the image is called in it."""

    parallel = True

    def __init__(self, directory: str, name: str | None, *, sync: bool = True) -> None:
        """Look at the directory.

        Raises:
            FormatError: it has something else in it.
        """
        self._layout = LayoutDirectory(directory, sync=sync)
        self._name = name

    def has(self, blob: Descriptor) -> bool:
        """See :class:`CopyTarget`."""
        return self._layout.has(blob)

    def put_blob(self, blob: Descriptor, pieces: Callable[[], Iterable[bytes]]) -> None:
        """See :class:`CopyTarget`."""
        self._layout.put(blob.digest, pieces())

    def put_manifest(self, document: Manifest | Index, *, top: bool) -> None:
        """See :class:`CopyTarget`."""
        self._layout.put(document.digest, [document.raw])
        if top:
            entry = _entry(document, self._name)
            self._layout.change_index(
                lambda entries: [*(other for other in entries if not self._replaces(document, other)), entry]
            )

    def _replaces(self, document: Manifest | Index, entry: object) -> bool:
        """Whether an entry of the index goes: it has the same name, or is the same image, and neither has a name."""
        name = name_of(entry)
        if self._name is not None or name is not None:
            return name == self._name
        return isinstance(entry, dict) and entry.get("digest") == str(document.digest)


class DirectoryTarget:
    """A directory of the transport ``dir:``, made if it is not there."""

    parallel = True

    def __init__(self, directory: str, *, sync: bool = True) -> None:
        """Look at the directory.

        Raises:
            FormatError: it has something else in it.
        """
        self._directory = os.path.abspath(directory)
        self._sync = sync
        self._used: set[str] = set()
        # The marker is looked for last: another process may be making the directory.
        if has_others(self._directory) and not os.path.exists(os.path.join(self._directory, "version")):
            raise FormatError(f"{directory} is not empty, and no image directory", hint="Name another directory.")

    def has(self, blob: Descriptor) -> bool:
        """See :class:`CopyTarget`."""
        self._used.add(os.path.basename(blob_file(self._directory, blob.digest)))
        return _file_size(blob_file(self._directory, blob.digest)) == blob.size

    def put_blob(self, blob: Descriptor, pieces: Callable[[], Iterable[bytes]]) -> None:
        """See :class:`CopyTarget`."""
        self._begin()
        put_blob(blob_file(self._directory, blob.digest), pieces(), sync=self._sync)

    def put_manifest(self, document: Manifest | Index, *, top: bool) -> None:
        """See :class:`CopyTarget`."""
        self._begin()
        if not top:
            path = blob_file(self._directory, document.digest, manifest=True)
            self._used.add(os.path.basename(path))
            put_blob(path, [document.raw], sync=self._sync)
            return
        # Signatures of another manifest would be taken for those of this one: they go before it comes.
        self._remove(re.compile(r"signature-\d+"))
        path = os.path.join(self._directory, "manifest.json")
        write_document(path, document.raw, mode=0o644, sync=self._sync)
        self._remove(re.compile(r"[0-9a-f]{64,128}(\.manifest\.json)?"))

    def _remove(self, names: re.Pattern[str]) -> None:
        """Remove what an image that was here before has left."""
        for name in os.listdir(self._directory):
            path = os.path.join(self._directory, name)
            if names.fullmatch(name) and name not in self._used and os.path.isfile(path):
                os.unlink(path)

    def _begin(self) -> None:
        """Say first what the directory is, so that it can be told later, whatever interrupts this."""
        marker = os.path.join(self._directory, "version")
        if not os.path.exists(marker):
            make_directories(self._directory, sync=self._sync)
            write_document(marker, VERSION, mode=0o644, sync=self._sync)


class ArchiveTarget:
    """An OCI archive, written in one pass: blobs, documents, and the index at the end."""

    parallel = False

    def __init__(self, target: Target, name: str | None) -> None:
        """Begin an archive; ``name`` is what the image is called in it."""
        self._target = target
        self._name = name
        self._directories = MemberDirectories()

    def has(self, blob: Descriptor) -> bool:  # noqa: ARG002 - of the protocol
        """See :class:`CopyTarget`."""
        return False

    def put_blob(self, blob: Descriptor, pieces: Callable[[], Iterable[bytes]]) -> None:
        """See :class:`CopyTarget`."""
        self._member(blob_path(blob.digest), blob.size, pieces())

    def put_manifest(self, document: Manifest | Index, *, top: bool) -> None:
        """See :class:`CopyTarget`."""
        self._member(blob_path(document.digest), len(document.raw), [document.raw])
        if top:
            index = encode_index([_entry(document, self._name)])
            self._member("index.json", len(index), [index])
            self._member("oci-layout", len(LAYOUT), [LAYOUT])
            self._target.write(END)

    def _member(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        self._target.write(self._directories.before(name) + member_header(name, size))
        for piece in pieces:
            self._target.write(piece)
        self._target.write(padding(size))


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def _entry(document: Manifest | Index, name: str | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "mediaType": document.media_type, "digest": str(document.digest), "size": len(document.raw),
    }  # fmt: skip
    if name is not None:
        entry["annotations"] = {REF_NAME: name, **({IMAGE_NAME: name} if _is_whole(name) else {})}
    return entry


def _is_whole(name: str) -> bool:
    """Return whether a name in a layout is a whole reference, which some tools want in an annotation of its own."""
    try:
        return "/" in name and str(Reference.parse(name)) == name
    except ValueError:
        return False
