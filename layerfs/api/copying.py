"""Copying an image from one place to another: registries, layouts, archives, directories, stores."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from typing import Literal

from layerfs.api import Store
from layerfs.api.base import refuse_inside_trio
from layerfs.api.callback import callbacks
from layerfs.api.together import each
from layerfs.errors import (
    Conflict,
    FormatError,
    InvalidReference,
    LayerfsError,
    NotFound,
    StoreError,
    UnsupportedFormat,
)
from layerfs.formats.compress import check_level
from layerfs.formats.digest import Digest
from layerfs.formats.media_type import CONFIG_TYPES, Compression
from layerfs.formats.oci import Descriptor, ImageConfig, Manifest
from layerfs.formats.platform import Platform
from layerfs.formats.reference import DEFAULT_TAG, Reference
from layerfs.formats.transport import ImageSource, parse_source, registry_name
from layerfs.linux.scratch import scratch_directory
from layerfs.registry.access import Access
from layerfs.registry.archive import find_archive
from layerfs.registry.choice import require_platform
from layerfs.registry.copy import (
    ArchiveTarget,
    CopyPlan,
    CopySource,
    CopyTarget,
    DirectoryTarget,
    LayoutTarget,
    MemberSource,
    RegistrySource,
    RegistryTarget,
    in_oci_form,
    plan_copy,
    verified,
)
from layerfs.registry.http import HttpClient
from layerfs.registry.image_directory import ImageDirectory
from layerfs.registry.load import open_archive
from layerfs.registry.loader import Progress
from layerfs.registry.members import DirectoryMembers
from layerfs.registry.plan import Selection
from layerfs.registry.recompress import RecompressedSource
from layerfs.registry.remote import Registries
from layerfs.registry.save import save_archive, save_layout
from layerfs.registry.target import open_target
from layerfs.registry.watch import Stopped
from layerfs.store import image as catalog
from layerfs.values import Image

__all__ = ["copy"]

#: How directories begin that are needed until a copy is done.
_SCRATCH = "layerfs-copy"

#: Bytes of a blob between two reports of progress.
_STEP = 1 << 20

_PATHS = ("oci", "oci-archive", "docker-archive", "dir")


def copy(
    source: str,
    destination: str,
    *,
    store: Store | None = None,
    platform: Platform | str | None = None,
    everything: bool = False,
    compression: Compression | None = None,
    level: int | None = None,
    access: Access | None = None,
    destination_access: Access | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Digest:
    """Copy an image from one transport to another.

    Between registries, layouts, directories and OCI archives documents and blobs stay as they are, byte for byte; but
    for the manifests of docker images that go into a layout or OCI archive, which hold OCI images. Into a store and
    out of one it is what :meth:`Store.pull`, :meth:`Store.push` and :meth:`Store.save` do. A docker archive holds
    uncompressed layers, so the image is laid down beside it in a store of its own meanwhile.

    Args:
        source: ``docker://NAME``, ``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]``, ``docker-archive:FILE[:NAME]``,
            ``dir:DIR`` or ``store:IMAGE``.
        destination: the same.
        store: for ``store:``.
        platform: which image of an index; None means this machine's.
        everything: all images of an index, and the index itself.
        compression: of all layers at the destination: ``none``, ``gzip`` or ``zstd``; None leaves them as they are.
            What is made anew lies beside the destination meanwhile, for a registry in ``tempfile.gettempdir()``.
        level: of the compression, with which all layers are compressed anew; None takes what is fast.
        access: how registries are reached.
        destination_access: how that of the destination is, when it differs: with credentials of its own, say.
        progress: told about layers, where a store is concerned; about blobs otherwise.
        check: polled several times a second; what it raises ends the copy.

    Returns:
        The digest of the manifest or index at the destination; for a store, of the image's manifest.

    Raises:
        InvalidReference: one of the two is no transport, or ``store:`` without a store; there is no such compression
            or level, or the destination holds uncompressed layers alone.
        Conflict: the docker archive is there already.
        UnsupportedFormat: a transport is known, but not supported.
        NotFound, FormatError, IntegrityError, RegistryError: the image is not there, broken, or cannot be moved.
        LayerfsError: a file cannot be written; or this is a trio task.

    Atomicity: the name at the destination changes when everything is there.
    """
    refuse_inside_trio()
    origin, target = parse_source(source), parse_source(destination)
    for text, place in ((source, origin), (destination, target)):
        if place.transport == "docker" and not text.startswith("docker://"):
            raise InvalidReference(f"{text!r:.200} has no transport", hint=f"Write docker://{text} for a registry.")
        if place.transport not in ("docker", "store", *_PATHS):
            raise UnsupportedFormat(f"copying with {place.transport}: is not supported")
        if place.transport == "store" and store is None:
            raise InvalidReference("store: needs a store")
    check_level(compression, level)
    if target.transport in ("store", "docker-archive") and compression not in (None, "none"):
        raise InvalidReference(f"layers of {target.transport}: are not compressed")
    if target.index is not None:
        raise InvalidReference(f"a destination has no position: {destination!r:.200}")
    if target.transport == "docker-archive" and os.path.isfile(target.path) and os.path.getsize(target.path):
        raise Conflict(
            f"{target.path} exists, and a docker archive cannot be added to", reason="exists", hint="Remove it first."
        )
    with callbacks() as own:
        wanted = _Copy(
            source, origin, destination, target, store, Platform.of(platform) if platform else None, everything,
            compression, level, access or Access(), destination_access, own.progress(progress), own.check(check),
        )  # fmt: skip
        if target.transport == "store":
            return wanted.into_store()
        if origin.transport == "store":
            return wanted.out_of_store()
        if target.transport == "docker-archive":
            return wanted.through_store()
        return wanted.as_it_is()


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is to be copied, and the ways to do it; for the fields see :func:`copy`."""

    source: str
    origin: ImageSource
    destination: str
    target: ImageSource
    store: Store | None
    platform: Platform | None
    everything: bool
    compression: Compression | None
    level: int | None
    access: Access
    destination_access: Access | None
    progress: Progress | None
    check: Callable[[], None] | None

    def into_store(self) -> Digest:
        """Pull, or tag what is there."""
        store, name = self._open_store(), self.target.reference or ""
        if self.origin.transport == "store":
            image = self._resolved()
            store.tag(image, name)
            return image.manifest_digest
        images = store.pull(
            self.source, platform=self.platform, all_platforms=self.everything, name=name, access=self.access,
            progress=self.progress, check=self.check,
        )  # fmt: skip
        if not images:
            raise NotFound("image", self.source)
        return next((image for image in images if image.given), images[0]).manifest_digest

    def out_of_store(self) -> Digest:
        """Push or save."""
        if self.everything:
            raise InvalidReference("an image of a store is one for one platform: there is no index to copy all of")
        store, target, image = self._open_store(), self.target, self._resolved()
        if target.transport == "docker":
            return store.push(
                image, registry_name(self.destination), compression=self.compression, level=self.level,
                access=self.destination_access or self.access, progress=self.progress, check=self.check,
            ).manifest_digest  # fmt: skip
        record = store._record(image)
        is_docker = target.transport == "docker-archive"  # which holds no manifest
        named = list(image.names) if is_docker else catalog.names_of_manifest(store._handle, record)
        own = catalog.name_among(self.origin.reference or "", named)
        names = [target.reference] if target.reference else [own] if own is not None else named[:1]
        wanted = [(record, names)]
        compression, level = self.compression, self.level
        if target.transport == "oci":
            return save_layout(
                store._handle, wanted, target.path, compression=compression, level=level, check=self.check
            )[0].manifest
        if target.transport == "dir":
            with _scratch(target) as scratch:
                layout = os.path.join(scratch, "oci")
                save_layout(
                    store._handle, wanted, layout, compression=compression, level=level, in_oci_form=False,
                    check=self.check,
                )  # fmt: skip
                with closing(DirectoryMembers(layout)) as members:
                    came = MemberSource(members, Selection(Platform.host(), form="oci"))
                    plan = plan_copy(came, Platform.host(), everything=False)
                    return self._moving([]).run(came, plan, DirectoryTarget(target.path), 1)
        with open_target(target.path, sync=store._handle.sync) as file:
            return save_archive(
                store._handle, wanted, file, docker=is_docker, compression=compression, level=level, check=self.check
            )[0].manifest

    def through_store(self) -> Digest:
        """Pull into a store beside the destination, and save from there: a docker archive is no copy of anything."""
        if self.everything:
            raise UnsupportedFormat("a docker archive holds no index", hint="Copy to oci-archive: instead.")
        with (
            _scratch(self.target) as scratch,
            _writing_scratch(self.destination, scratch),
            Store.open(os.path.join(scratch, "store"), sync=False) as store,
        ):
            images = store.pull(
                self.source, platform=self.platform, access=self.access, progress=self.progress, check=self.check
            )
            if len(images) != 1:
                raise FormatError(f"{self.source} has {len(images)} images", hint="Name one of them.")
            origin = ImageSource("store", "", str(images[0].id))
            return replace(self, origin=origin, store=store, platform=None).out_of_store()

    def as_it_is(self) -> Digest:
        """Move documents and blobs."""
        with ExitStack() as stack:
            registries = into = stack.enter_context(Registries.open(self.access, self.check))
            if self.destination_access is not None:
                into = stack.enter_context(Registries.open(self.destination_access, self.check))
            moving = self._moving([registries.http, into.http])
            came: CopySource
            if self.origin.transport == "docker":
                came = RegistrySource(registries, registry_name(self.source), moving.poll)
            else:
                came = stack.enter_context(_members(self.source, self.access))
            plan = plan_copy(came, self.platform or Platform.host(), everything=self.everything)
            self._refuse_platform(came)
            if self.compression is not None:
                scratch = stack.enter_context(_scratch(self.target))
                anew = RecompressedSource(came, scratch, self.compression, self.level)
                came, plan = anew, moving.recompress(came, anew, plan, self.access.jobs)
            if self.target.transport in ("oci", "oci-archive"):
                plan = in_oci_form(plan)
            where = stack.enter_context(self._opened_target(into, plan, moving.poll))
            return moving.run(came, plan, where, self.access.jobs)

    def _open_store(self) -> Store:
        assert self.store is not None, "whoever names a store has one"
        return self.store

    def _resolved(self) -> Image:
        """Return the image of a store that is meant, which has to be for the platform, if one is asked for."""
        store = self._open_store()
        image = store._image(store._sent(self.origin.reference or ""))
        if self.platform is not None:
            require_platform(self.platform, image.platform)
        return image

    def _refuse_platform(self, came: CopySource) -> None:
        """Refuse an image that is for one platform, if another one is asked for.

        Raises:
            NotFound: it is for another one.
        """
        top = came.top()
        if self.platform is None or not isinstance(top, Manifest) or top.config.media_type not in CONFIG_TYPES:
            return
        raw = b"".join(verified(came.blob(top.config), top.config))
        require_platform(self.platform, ImageConfig.parse(raw, algorithm=top.config.digest.algorithm).platform)

    def _moving(self, connections: Sequence[HttpClient]) -> _Moving:
        return _Moving(connections, self.destination, self.progress, self.check)

    @contextmanager
    def _opened_target(self, registries: Registries, plan: CopyPlan, poll: Callable[[], None]) -> Iterator[CopyTarget]:
        target = self.target
        if target.transport == "docker":
            # As for a push: where something goes is not looked for.
            reference = Reference.parse(registry_name(self.destination)).with_default_tag()
            if reference.digest is not None and reference.tag is not None:
                raise InvalidReference(f"{self.destination} has a tag and a digest", hint="Write one of them.")
            if reference.digest not in (None, plan.documents[-1].digest):
                raise InvalidReference(
                    f"{self.destination} has the digest of something else: {plan.documents[-1].digest} is copied"
                )
            access = self.destination_access or self.access
            tag = reference.digest or reference.tag or DEFAULT_TAG
            yield RegistryTarget(registries.write_to(reference), tag, access, poll)
        elif target.transport in ("oci", "dir"):
            is_layout = target.transport == "oci"
            with _writing(self.destination):
                found = LayoutTarget(target.path, target.reference) if is_layout else DirectoryTarget(target.path)
            yield found
        else:
            with open_target(target.path) as file:
                yield ArchiveTarget(file, target.reference)


class _Moving:
    """Moves the blobs and documents of one image, several at a time."""

    def __init__(
        self,
        connections: Sequence[HttpClient],
        destination: str,
        progress: Progress | None,
        check: Callable[[], None] | None,
    ) -> None:
        self._connections = connections
        self._destination = destination
        self._progress = progress
        self._check = check
        self._stopped = False
        self._telling = threading.Lock()

    def poll(self) -> None:
        """End a thread whose work is not wanted any more."""
        if self._stopped:
            raise Stopped
        if self._check is not None:
            self._check()

    def run(self, came: CopySource, plan: CopyPlan, where: CopyTarget, jobs: int) -> Digest:
        """Move all; return the digest of the document under the name.

        Raises:
            LayerfsError: a blob cannot be read, or the destination not be written.
        """

        def move(blob: Descriptor) -> None:
            key = str(blob.digest)
            if where.has(blob):
                self._tell(key, "Already exists", 0, None)
                return
            self._tell(key, "Copying", 0, blob.size)
            where.put_blob(blob, lambda: self._polled(verified(came.blob(blob), blob), blob, "Copying"))
            self._tell(key, "Copy complete", blob.size, blob.size)

        with _writing(self._destination):
            each(move, plan.blobs, jobs if where.parallel else 1, self._stop, self._check)
            for document in plan.documents:
                where.put_manifest(document, top=document is plan.documents[-1])
        return plan.documents[-1].digest

    def recompress(self, came: CopySource, anew: RecompressedSource, plan: CopyPlan, jobs: int) -> CopyPlan:
        """Compress the layers anew that have to be; return the plan with them.

        Raises:
            LayerfsError: a layer cannot be read, or is damaged; or there is no room for it.
        """

        def compress(layer: Descriptor) -> None:
            self._tell(str(layer.digest), "Compressing", 0, layer.size)
            anew.compress(layer, self._polled(verified(came.blob(layer), layer), layer, "Compressing"))
            self._tell(str(layer.digest), "Compressed", layer.size, layer.size)

        with _writing(self._destination):
            each(compress, anew.changed(plan), jobs, self._stop, self._check)
        return anew.replan(plan)

    def _stop(self) -> None:
        self._stopped = True
        for connection in self._connections:
            connection.abort()

    def _tell(self, key: str, state: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            with self._telling:
                self._progress.update(key, state, done, total)

    def _polled(self, pieces: Iterator[bytes], blob: Descriptor, state: str) -> Iterator[bytes]:
        done = told = 0
        while True:
            self.poll()
            try:
                piece = next(pieces, None)
            except OSError as error:
                if isinstance(error, LayerfsError):
                    raise
                raise LayerfsError(f"cannot read blob {blob.digest}: {error.strerror or error}") from error
            if piece is None:
                return
            yield piece
            done += len(piece)
            if done - told >= _STEP:
                told = done
                self._tell(str(blob.digest), state, done, blob.size)


@contextmanager
def _members(source: str, access: Access) -> Iterator[MemberSource]:
    """Open an archive, layout or directory to copy from, after asking the policy."""
    origin = find_archive(source, access)
    try:
        opened = ImageDirectory(origin.path) if origin.transport == "dir" else open_archive(origin.path)
    except OSError as error:
        raise LayerfsError(f"cannot read {origin.path}: {error.strerror}") from error
    with closing(opened):
        if isinstance(opened, FileIO):
            raise UnsupportedFormat(
                f"{origin.path} is compressed as a whole, or a pipe", hint="Load it into the store and copy from there."
            )
        form: Literal["docker", "oci"] = "docker" if origin.transport == "docker-archive" else "oci"
        selection = Selection(Platform.host(), reference=origin.reference, position=origin.index, form=form)
        yield MemberSource(opened, selection)


@contextmanager
def _scratch(target: ImageSource) -> Iterator[str]:
    """Make a directory beside a destination for as long as it is written; else where such things go."""
    place = os.path.dirname(os.path.abspath(target.path)) if target.path else tempfile.gettempdir()
    is_directory = target.transport in ("oci", "dir")
    while is_directory and not os.path.isdir(place):
        place = os.path.dirname(place)  # what is missing is made by who writes there
    if is_directory and not os.access(place, os.W_OK):  # around a volume, say, which itself takes files
        place = tempfile.gettempdir()
    with ExitStack() as stack:
        with _writing(place):
            directory = stack.enter_context(scratch_directory(place, _SCRATCH))
        yield directory


@contextmanager
def _writing_scratch(destination: str, scratch: str) -> Iterator[None]:
    """Say of what goes wrong with the store beside a destination that it goes wrong there: nobody named the store."""
    try:
        yield
    except StoreError as error:
        if not error.root.startswith(scratch):
            raise
        cause = error.__cause__
        said = cause.strerror if isinstance(cause, OSError) else error
        raise LayerfsError(f"cannot write {destination}: {said}") from error


@contextmanager
def _writing(destination: str) -> Iterator[None]:
    """Say of an error of the operating system what could not be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LayerfsError):
            raise
        raise LayerfsError(f"cannot write {destination}: {error.strerror or error}") from error
