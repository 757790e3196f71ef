"""The consuming half of a load: events of layers come in, layers go into the store, images are made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from layerfs.errors import DigestMismatch, IntegrityError, LayerfsError, NotFound, StoreError, UnsafePath
from layerfs.formats.digest import Digest, new_hash
from layerfs.formats.oci import Descriptor
from layerfs.registry.members import Members
from layerfs.registry.pipeline import Chunk, LayerBegin, LayerEnd, LayerFailed, name_layer, read_blob
from layerfs.registry.plan import ImagePlan, LayerPlan, synthesize_manifest
from layerfs.registry.stream import ArchiveDocument, ArchiveLink, KnownLayer, StreamEvent
from layerfs.store.derive import aligned
from layerfs.store.gc import collect
from layerfs.store.handle import StoreHandle
from layerfs.store.image import ImageRecord, find_name, find_record
from layerfs.store.ingest import Ingest, IngestedLayer, Pending
from layerfs.store.kept_blob import has_blob
from layerfs.store.layer import find_layer, read_layer
from layerfs.store.new_image import NewImage, commit_images

__all__ = ["Loader", "Progress"]

#: Links followed from one member to another.
_MAX_LINKS = 8

#: Bytes of a blob between two reports of progress.
_PROGRESS_STEP = 1 << 20


class Progress(Protocol):
    """Told how a transfer gets on, at most once per mebibyte of a layer; from several threads, one at a time."""

    def update(self, key: str, state: str, done: int, total: int | None) -> None:
        """Take note.

        Args:
            key: the layer: its digest where it is known beforehand, else its name in the archive.
            state: in the words that docker's users know: ``Waiting``, ``Loading``, ``Downloading``, ``Pull complete``,
                ``Already exists`` and so on.
            done: bytes of the blob that are read or sent so far.
            total: bytes of the blob; None when nothing of it has to be read.
        """


@dataclass(slots=True)
class _Reading:
    """A layer under way: its name in the archive, for progress and for errors, and what it must be, if that is known.

    ``pending`` is None when its bytes are not wanted, ``damage`` what was wrong with them so far.
    """

    member: str
    key: str
    size: int
    plan: LayerPlan | None
    told: int = 0
    pending: Pending | None = None
    damage: LayerfsError | None = None


class Loader:
    """One load. All methods belong to one thread."""

    def __init__(
        self,
        handle: StoreHandle,
        progress: Progress | None,
        check: Callable[[], None] | None,
        *,
        keep_blobs: bool = False,
    ) -> None:
        """Prepare a load.

        Args:
            handle: the store.
            progress: told about every layer.
            check: polled between pieces; what it raises ends the load.
            keep_blobs: whether compressed blobs are kept too.
        """
        self._handle = handle
        self._keep_blobs = keep_blobs
        self._progress = progress
        self._check = check
        self._layers: dict[str, IngestedLayer] = {}
        self._blobs: dict[str, tuple[Digest, int]] = {}
        self._errors: dict[str, LayerfsError] = {}
        self._documents: dict[str, bytes] = {}
        self._links: dict[str, str] = {}

    def run(self, work: Callable[[Ingest], list[ImageRecord]]) -> list[ImageRecord]:
        """Run a load, and remove at its end the layers that it brought in and no image uses.

        What cannot be removed now, such as bytes that others borrow when the disk is full, goes another time.
        """
        try:
            with Ingest(self._handle, keep_blobs=self._keep_blobs, check=self._check) as ingest:
                return work(ingest)
        finally:
            with contextlib.suppress(OSError, LayerfsError):
                collect(self._handle)

    def document(self, name: str) -> bytes | None:
        """Return a document of a stream that was read to its end, through links."""
        return self._documents.get(self._followed(name))

    def take_present(self, ingest: Ingest, layers: Sequence[LayerPlan], members: Members) -> set[str]:
        """Note the layers that the store has whole; return the members that need not be read.

        A member is read all the same, and verified, when its descriptor names a blob that the store has never seen
        decompress to that layer.

        Raises:
            NotFound: a layer is not in the archive.
            IntegrityError: a member has not the size that its descriptor promises.
        """
        known = ingest.find_layers([layer.diff_id for layer in layers])
        present = set()
        for layer in layers:
            try:
                reader = members.open(layer.member)
            except NotFound as error:
                hint = "The archive is not complete."
                raise NotFound("layer in the archive", layer.member, hint=hint) from error
            reader.close()
            found = known.get(layer.diff_id)
            if layer.blob is not None:
                _check_size(layer.blob, reader.size)
                if found is not None and not ingest.is_blob_of(layer.blob.digest, layer.blob.size, found):
                    found = None
            if not self._keeps(layer):
                found = None
            if found is None:
                self._tell(str(layer.diff_id), "Waiting", 0, None)
                continue
            self._layers[layer.member] = found
            present.add(layer.member)
            self._tell(str(layer.diff_id), "Already exists", 0, None)
        return present

    def consume(self, ingest: Ingest, events: Iterable[StreamEvent], plans: Mapping[str, LayerPlan] | None) -> None:
        """Take all events: lay layers down, keep documents and links.

        Args:
            ingest: where layers go.
            events: what the producing half yields.
            plans: what each member must turn out to be; None when that is known only at the end. Then a damaged layer
                is no error before an image wants it.
        """
        reading: _Reading | None = None
        for event in events:
            if self._check is not None:
                self._check()
            match event:
                case ArchiveDocument():
                    self._documents[event.member] = event.raw
                case ArchiveLink():
                    self._links[event.member] = event.target
                case KnownLayer():
                    self._take_known(ingest, event)
                case LayerBegin():
                    plan = plans[event.member] if plans is not None else None
                    reading = self._begin(ingest, event, plan)
                case _:
                    assert reading is not None
                    self._go_on(ingest, reading, event)

    def _go_on(self, ingest: Ingest, reading: _Reading, event: Chunk | LayerEnd | LayerFailed) -> None:
        """Take the next event of a layer; what is wrong with it is raised, or kept until it is known to matter."""
        try:
            match event:
                case Chunk():
                    if reading.pending is not None:
                        reading.pending.writer.write(event.data)
                    if event.done - reading.told >= _PROGRESS_STEP:
                        reading.told = event.done
                        self._tell(reading.key, "Loading", event.done, reading.size)
                case LayerFailed():
                    self._blobs[reading.member] = (event.blob, event.size)
                    raise event.error
                case LayerEnd():
                    self._blobs[reading.member] = (event.blob, event.size)
                    if reading.damage is not None:
                        raise reading.damage
                    self._end(ingest, reading, event)
                    self._tell(reading.key, "Load complete", reading.size, reading.size)
        except LayerfsError as error:
            name_layer(error, reading.key)
            if reading.pending is not None:
                ingest.abandon(reading.pending)
                reading.pending = None
            reading.damage = self._errors[reading.member] = error
            if reading.plan is None:
                return
            if not isinstance(event, Chunk):
                # That the blob is not what was promised says more than what is wrong inside.
                _check_blob(reading.plan, event.blob, event.size)
                raise
            if reading.plan.blob is None:
                raise

    def commit(self, ingest: Ingest, plans: Sequence[ImagePlan]) -> list[ImageRecord]:
        """Make the images, all or none.

        Raises:
            NotFound: a layer was not in the archive.
            IntegrityError: a layer is not what an image's documents promise.
        """
        return commit_images(ingest, [self._image(ingest, plan) for plan in plans])

    def _image(self, ingest: Ingest, plan: ImagePlan) -> NewImage:
        layers = [self._layer(ingest, layer) for layer in plan.layers]
        manifest = plan.manifest or self._received_manifest(plan)
        if manifest is None:
            ingest.flush()
            sizes = [record.tar_size for layer in layers if (record := find_layer(self._handle, layer.diff_id))]
            manifest = synthesize_manifest(plan.config, sizes)
        return NewImage((plan.config.digest, plan.config.raw), manifest, layers, plan.names)

    def _received_manifest(self, plan: ImagePlan) -> tuple[Digest, bytes] | None:
        """Return the manifest that the store has of an image whose archive brings none: it may be the registry's."""
        known = find_record(self._handle, plan.config.digest)
        if known is None:
            return None
        named = (find_name(self._handle, name) for name in plan.names)
        known = next((record for record in named if record is not None and record.id == known.id), known)
        try:
            return known.manifest, self._handle.read_blob(known.manifest)
        except StoreError:
            return None

    def _begin(self, ingest: Ingest, event: LayerBegin, plan: LayerPlan | None) -> _Reading:
        diff_id = plan.diff_id if plan is not None else None
        reading = _Reading(event.member, str(diff_id or event.member), event.size, plan)
        begun = ingest.begin_layer(diff_id)
        if isinstance(begun, Pending):
            reading.pending = begun
        else:
            self._layers[event.member] = begun
        self._tell(reading.key, "Loading", 0, event.size)
        return reading

    def _end(self, ingest: Ingest, reading: _Reading, event: LayerEnd) -> None:
        if reading.plan is not None:
            _check_blob(reading.plan, event.blob, event.size)
        if reading.pending is not None:
            pending, reading.pending = reading.pending, None
            self._layers[event.member] = ingest.finish_layer(pending, event.diff_id, (event.blob, event.size))
        elif reading.plan is not None:
            ingest.add_blob(self._layers[event.member], event.diff_id, (event.blob, event.size))
        if ingest.blobs is not None:
            ingest.blobs.end(event.member, event.blob)

    def _keeps(self, layer: LayerPlan) -> bool:
        """Return whether the store keeps all of a layer that is to be kept."""
        blob = layer.blob
        return not self._keep_blobs or blob is None or blob.digest == layer.diff_id or has_blob(self._handle, blob)

    def _take_known(self, ingest: Ingest, event: KnownLayer) -> None:
        found = ingest.find_compressed(event.blob) or ingest.find_layer(event.blob)
        if found is None:
            raise IntegrityError(f"layer {event.blob} was removed from the store while it was being used")
        self._layers[event.member] = found
        self._blobs[event.member] = (event.blob, event.size)
        self._tell(str(event.blob), "Already exists", 0, None)

    def _layer(self, ingest: Ingest, plan: LayerPlan) -> IngestedLayer:
        """Return the layer that was read for a plan, after checking that it is the one."""
        member = self._followed(plan.member)
        if member in self._errors:
            if member in self._blobs:
                _check_blob(plan, *self._blobs[member])
            raise self._errors[member]
        layer = self._layers.get(member)
        if layer is None and member in self._documents:
            # No tar by its first bytes. A layer all the same: an empty one, or one whose error is worth telling.
            layer = self._layer_of_document(ingest, member, plan)
        if layer is None:
            raise NotFound("layer in the archive", plan.member, hint="The archive is not complete.")
        if member in self._blobs:
            _check_blob(plan, *self._blobs[member])
        if layer.diff_id.algorithm != plan.diff_id.algorithm:
            layer = self._digest_anew(ingest, layer, plan.diff_id)
        if layer.diff_id != plan.diff_id:
            ingest.flush()
            record = find_layer(self._handle, layer.diff_id)
            size = record.tar_size if record is not None else 0
            raise DigestMismatch("layer", expected=str(plan.diff_id), actual=str(layer.diff_id), size=size)
        return layer

    def _layer_of_document(self, ingest: Ingest, member: str, plan: LayerPlan) -> IngestedLayer | None:
        raw = BytesIO(self._documents[member])
        blob = plan.blob.digest.algorithm if plan.blob is not None else "sha256"
        events = read_blob(
            member, len(raw.getbuffer()), raw.read, blob_algorithm=blob, diff_algorithm=plan.diff_id.algorithm
        )
        self.consume(ingest, events, {member: plan})
        return self._layers.get(member)

    def _digest_anew(self, ingest: Ingest, layer: IngestedLayer, wanted: Digest) -> IngestedLayer:
        """Store a layer of a stream under another algorithm's digest; its files are shared, so this takes no space."""
        ingest.flush()
        record = find_layer(self._handle, layer.diff_id)
        pending = ingest.begin_layer(wanted)
        if isinstance(pending, IngestedLayer) or record is None:
            return pending if isinstance(pending, IngestedLayer) else layer
        hasher = new_hash(wanted.algorithm)
        for piece in aligned(read_layer(self._handle, record, check=self._check)):
            hasher.update(piece)
            pending.writer.write(piece)
        return ingest.finish_layer(pending, Digest(wanted.algorithm, hasher.hexdigest()), None)

    def _followed(self, name: str) -> str:
        """Return the member that a name means, through links."""
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                return name
            name = self._links[name]
        raise UnsafePath(f"archive member {name!r} is a loop of links")

    def _tell(self, key: str, state: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress.update(key, state, done, total)


def _check_blob(plan: LayerPlan, digest: Digest, size: int) -> None:
    """Compare a blob with its descriptor, where there is one.

    Raises:
        DigestMismatch, IntegrityError: it is another one.
    """
    if plan.blob is None:
        return
    _check_size(plan.blob, size)
    if digest != plan.blob.digest:
        raise DigestMismatch("layer", expected=str(plan.blob.digest), actual=str(digest), size=size)


def _check_size(promised: Descriptor, size: int) -> None:
    if size != promised.size:
        raise IntegrityError(f"layer {promised.digest}: {size} bytes, expected {promised.size}")
