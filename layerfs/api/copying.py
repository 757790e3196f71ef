"""Copying an image from one place to another: registries, layouts, archives, directories, stores."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Literal

from layerfs.api import Store
from layerfs.api.base import refuse_inside_trio
from layerfs.api.together import each
from layerfs.errors import Conflict, FormatError, InvalidReference, LayerfsError, NotFound, UnsupportedFormat
from layerfs.formats.digest import Digest
from layerfs.formats.oci import Descriptor
from layerfs.formats.platform import Platform
from layerfs.formats.policy import path_scopes
from layerfs.formats.reference import DEFAULT_TAG, Reference
from layerfs.formats.transport import ImageSource, parse_source, registry_name
from layerfs.registry.access import Access
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
from layerfs.registry.load import open_members
from layerfs.registry.loader import Progress
from layerfs.registry.members import DirectoryMembers, Members
from layerfs.registry.plan import Selection
from layerfs.registry.remote import Registries
from layerfs.registry.save import save_archive, save_layout
from layerfs.registry.target import open_target
from layerfs.registry.watch import Stopped
from layerfs.values import Image

__all__ = ["copy"]

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
    access: Access | None = None,
    destination_access: Access | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Digest:
    """Copy an image from one transport to another.

    Between registries, layouts, directories and OCI archives documents and blobs stay as they are, byte for byte; but
    for the manifest of a docker image that goes into a layout or OCI archive, which hold OCI images. Into a store and
    out of one it is what :meth:`Store.pull`, :meth:`Store.push` and :meth:`Store.save` do. A docker archive holds
    uncompressed layers, so the image is laid down beside it in a store of its own meanwhile.

    Args:
        source: ``docker://NAME``, ``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]``, ``docker-archive:FILE[:NAME]``,
            ``dir:DIR`` or ``store:IMAGE``.
        destination: the same.
        store: for ``store:``.
        platform: which image of an index; None means this machine's.
        everything: all images of an index, and the index itself.
        access: how registries are reached.
        destination_access: how that of the destination is, when it differs: with credentials of its own, say.
        progress: told about layers, where a store is concerned; about blobs otherwise.
        check: polled several times a second; what it raises ends the copy.

    Returns:
        The digest of the manifest or index at the destination; for a store, of the image's manifest.

    Raises:
        InvalidReference: one of the two is no transport, or ``store:`` without a store.
        Conflict: the docker archive is there already.
        UnsupportedFormat: a transport is known, but not supported.
        NotFound, FormatError, IntegrityError, RegistryError: the image is not there, broken, or cannot be moved.
        LayerfsError: a file cannot be written; or this is a trio task.

    Atomicity: the name at the destination changes when everything is there.
    """
    refuse_inside_trio()
    access = access or Access()
    origin, target = parse_source(source), parse_source(destination)
    for text, place in ((source, origin), (destination, target)):
        if place.transport == "docker" and not text.startswith("docker://"):
            raise InvalidReference(f"{text!r:.200} has no transport", hint=f"Write docker://{text} for a registry.")
        if place.transport not in ("docker", "store", *_PATHS):
            raise UnsupportedFormat(f"copying with {place.transport}: is not supported")
        if place.transport == "store" and store is None:
            raise InvalidReference("store: needs a store")
    if target.index is not None:
        raise InvalidReference(f"a destination has no position: {destination!r:.200}")
    if target.transport == "docker-archive" and os.path.isfile(target.path) and os.path.getsize(target.path):
        raise Conflict(
            f"{target.path} exists, and a docker archive cannot be added to", reason="exists", hint="Remove it first."
        )
    if target.transport == "store":
        assert store is not None
        return _into_store(store, source, origin, target, platform, everything, access, progress, check)
    if origin.transport == "store":
        assert store is not None
        if everything:
            raise InvalidReference("an image of a store is one for one platform: there is no index to copy all of")
        return _out_of_store(
            store, origin, destination, target, Platform.of(platform) if platform else None,
            destination_access or access, progress, check,
        )  # fmt: skip
    if target.transport == "docker-archive":
        if everything:
            raise UnsupportedFormat("a docker archive holds no index", hint="Copy to oci-archive: instead.")
        return _through_store(source, destination, target, platform, access, progress, check)
    return _as_it_is(
        source, origin, destination, target, platform, everything, access, destination_access, progress, check
    )  # fmt: skip


def _into_store(
    store: Store,
    source: str,
    origin: ImageSource,
    target: ImageSource,
    platform: Platform | str | None,
    everything: bool,  # noqa: FBT001 - passed through
    access: Access,
    progress: Progress | None,
    check: Callable[[], None] | None,
) -> Digest:
    name = target.reference or ""
    if origin.transport == "store":
        image = _resolved(store, origin, Platform.of(platform) if platform else None)
        store.tag(image, name)
        return image.manifest_digest
    images = store.pull(
        source, platform=platform, all_platforms=everything, name=name, access=access, progress=progress, check=check
    )
    if not images:
        raise NotFound("image", source)
    return next((image for image in images if image.given), images[0]).manifest_digest


def _resolved(store: Store, origin: ImageSource, platform: Platform | None) -> Image:
    """Return the image of a store that is meant, which has to be for the platform, if one is asked for."""
    image = store.resolve(origin.reference or "")
    if platform is not None and not platform.matches(image.platform):
        raise NotFound("platform of the image", str(platform), hint=f"There is: {image.platform}.")
    return image


def _out_of_store(
    store: Store,
    origin: ImageSource,
    destination: str,
    target: ImageSource,
    platform: Platform | None,
    access: Access,
    progress: Progress | None,
    check: Callable[[], None] | None,
) -> Digest:
    image = _resolved(store, origin, platform)
    if target.transport == "docker":
        return store.push(
            image, registry_name(destination), access=access, progress=progress, check=check
        ).manifest_digest
    names = [target.reference] if target.reference else list(image.names[:1])
    wanted = [(store._record(image), names)]
    if target.transport == "oci":
        return save_layout(store._handle, wanted, target.path, check=check)[0].manifest
    if target.transport == "dir":
        with tempfile.TemporaryDirectory(prefix=".layerfs-", dir=_beside(target.path)) as scratch:
            layout = os.path.join(scratch, "oci")
            save_layout(store._handle, wanted, layout, check=check)
            with closing(DirectoryMembers(layout)) as members:
                came = MemberSource(members, Selection(Platform.host(), form="oci"))
                plan = plan_copy(came, Platform.host(), everything=False)
                return _Moving([], progress, check).run(came, plan, DirectoryTarget(target.path), destination, 1)
    with open_target(target.path, sync=store._handle.sync) as file:
        docker = target.transport == "docker-archive"
        return save_archive(store._handle, wanted, file, docker=docker, check=check)[0].manifest


def _through_store(
    source: str,
    destination: str,
    target: ImageSource,
    platform: Platform | str | None,
    access: Access,
    progress: Progress | None,
    check: Callable[[], None] | None,
) -> Digest:
    with (
        tempfile.TemporaryDirectory(prefix=".layerfs-", dir=_beside(target.path)) as scratch,
        Store.open(os.path.join(scratch, "store"), sync=False) as store,
    ):
        images = store.pull(source, platform=platform, access=access, progress=progress, check=check)
        if len(images) != 1:
            raise FormatError(f"{source} has {len(images)} images", hint="Name one of them.")
        origin = ImageSource("store", "", str(images[0].id))
        return _out_of_store(store, origin, destination, target, None, access, progress, check)


def _as_it_is(
    source: str,
    origin: ImageSource,
    destination: str,
    target: ImageSource,
    platform: Platform | str | None,
    everything: bool,  # noqa: FBT001 - passed through
    access: Access,
    destination_access: Access | None,
    progress: Progress | None,
    check: Callable[[], None] | None,
) -> Digest:
    with ExitStack() as stack:
        registries = into = stack.enter_context(Registries.open(access, check))
        if destination_access is not None:
            into = stack.enter_context(Registries.open(destination_access, check))
        moving = _Moving([registries.http, into.http], progress, check)
        came: CopySource
        if origin.transport == "docker":
            came = RegistrySource(registries, registry_name(source), moving.poll)
        else:
            came = stack.enter_context(_members(origin, source, access))
        plan = plan_copy(came, Platform.of(platform), everything=everything)
        if target.transport in ("oci", "oci-archive"):
            plan = in_oci_form(plan)
        where: CopyTarget = stack.enter_context(
            _target(into, destination, target, destination_access or access, moving.poll)
        )
        return moving.run(came, plan, where, destination, access.jobs)


class _Moving:
    """Moves the blobs and documents of one image, several at a time."""

    def __init__(
        self, connections: Sequence[HttpClient], progress: Progress | None, check: Callable[[], None] | None
    ) -> None:
        self._connections = connections
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

    def run(self, came: CopySource, plan: CopyPlan, where: CopyTarget, destination: str, jobs: int) -> Digest:
        """Move all; return the digest of the document under the name.

        Raises:
            LayerfsError: ``destination`` cannot be written.
        """

        def move(blob: Descriptor) -> None:
            key = str(blob.digest)
            if where.has(blob):
                self._tell(key, "Already exists", 0, None)
                return
            self._tell(key, "Copying", 0, blob.size)
            where.put_blob(blob, lambda: self._polled(verified(came.blob(blob), blob), blob))
            self._tell(key, "Copy complete", blob.size, blob.size)

        try:
            each(move, plan.blobs, jobs if where.parallel else 1, self._stop, self._check)
            for document in plan.documents:
                where.put_manifest(document, top=document is plan.documents[-1])
        except OSError as error:
            raise LayerfsError(f"cannot write {destination}: {error.strerror or error}") from error
        return plan.documents[-1].digest

    def _stop(self) -> None:
        self._stopped = True
        for connection in self._connections:
            connection.abort()

    def _tell(self, key: str, state: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            with self._telling:
                self._progress.update(key, state, done, total)

    def _polled(self, pieces: Iterator[bytes], blob: Descriptor) -> Iterator[bytes]:
        done = told = 0
        for piece in pieces:
            self.poll()
            yield piece
            done += len(piece)
            if done - told >= _STEP:
                told = done
                self._tell(str(blob.digest), "Copying", done, blob.size)


@contextmanager
def _members(origin: ImageSource, source: str, access: Access) -> Iterator[MemberSource]:
    """Open an archive, layout or directory to copy from, after asking the policy."""
    if not os.path.exists(origin.path):
        raise NotFound("file or directory", origin.path)
    policy = access.read_policy()
    if policy is not None:
        policy.check(origin.transport, path_scopes(os.path.realpath(origin.path)), source)
    members: Members | None = ImageDirectory(origin.path) if origin.transport == "dir" else open_members(origin.path)
    if members is None:
        raise UnsupportedFormat(
            f"{origin.path} is compressed as a whole, or a pipe", hint="Load it into the store and copy from there."
        )
    try:
        form: Literal["docker", "oci"] = "docker" if origin.transport == "docker-archive" else "oci"
        selection = Selection(Platform.host(), reference=origin.reference, position=origin.index, form=form)
        yield MemberSource(members, selection)
    finally:
        members.close()


@contextmanager
def _target(
    registries: Registries, destination: str, target: ImageSource, access: Access, poll: Callable[[], None]
) -> Iterator[CopyTarget]:
    if target.transport == "docker":
        # As for a push: where something goes is not looked for.
        reference = Reference.parse(registry_name(destination)).with_default_tag()
        if reference.digest is not None:
            raise InvalidReference(f"{destination} has a digest: an image is copied to a repository and a tag")
        yield RegistryTarget(registries.write_to(reference), reference.tag or DEFAULT_TAG, access, poll)
    elif target.transport == "oci":
        yield LayoutTarget(target.path, target.reference)
    elif target.transport == "dir":
        yield DirectoryTarget(target.path)
    else:
        with open_target(target.path) as file:
            yield ArchiveTarget(file, target.reference)


def _beside(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))
