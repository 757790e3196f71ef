"""Images in, from archives, layouts, streams and registries; and out, to registries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, EROFS
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Literal

from layerfs.api.base import StorePart, StrPath, refuse_inside_trio
from layerfs.api.callback import callbacks
from layerfs.errors import InvalidReference, MountError, StoreError, StoreReadOnly
from layerfs.formats.media_type import Compression
from layerfs.formats.platform import Platform
from layerfs.formats.reference import DEFAULT_TAG, Reference
from layerfs.formats.transport import is_registry, registry_name
from layerfs.store import image as catalog

if TYPE_CHECKING:
    from layerfs.formats.policy import Policy
    from layerfs.registry.access import Access
    from layerfs.registry.loader import Progress
    from layerfs.registry.remote import Registries, RemoteImages
    from layerfs.values import Image, PushedImage

# The HTTP library takes longer to import than most verbs take altogether, and trio as long again: these, and what reads
# archives, are imported where they are used.

__all__ = ["Form", "TransferPart"]

#: What an archive is: an OCI one (or a layout), or one of docker.
Form = Literal["oci", "docker"]


class TransferPart(StorePart):
    """How images come in and go out."""

    def load(
        self,
        source: StrPath | BinaryIO,
        *,
        platform: Platform | str | None = None,
        all_platforms: bool = False,
        reference: str | None = None,
        position: int | None = None,
        form: Form | None = None,
        name: str | None = None,
        policy: Policy | None = None,
        keep_blobs: bool = False,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Load images from a docker archive, an OCI archive or an OCI layout, recognised by content.

        Args:
            source: path of an archive (possibly compressed as a whole) or of a layout's directory; or a stream, which
                is read in one pass and may be a pipe. The caller closes it.
            platform: of an image for several platforms, this one, such as ``linux/arm64``; None means this
                machine's.
            all_platforms: all of them instead.
            reference: only the image of this name.
            position: only the image at this place in the archive, from 0.
            form: what the archive has to be; None takes either, and an archive that is both for an OCI one.
            name: what the image is to be called, instead of what it is called there; of several, the one for this
                machine.
            policy: the trust policy, which knows an archive by its path; None lets everything in.
            keep_blobs: also keep the compressed layers as they are, for :meth:`save` and pushes with the same manifest
                digest; takes their size on top. They go with their image.
            progress: told about every layer.
            check: polled several times a second; what it raises ends the load.

        Returns:
            The images, in the archive's order, without any that another process has removed already.

        Raises:
            FormatError: no image archive, or a broken one; UnsupportedFormat says what is not supported.
            IntegrityError: a size or digest is not as promised.
            NotFound: a blob is missing, or nothing fits ``platform`` or ``reference``.
            Denied: the policy refuses.
            StoreError: no space, or an error of the disk.

        Blocking: reads and writes all layers that the store does not have; with ``sync``, waits for the disk.
        Atomicity: an image is visible once it is complete and durable. A load that fails leaves the store as it was.
        """
        from layerfs.registry.load import load_source
        from layerfs.registry.plan import Selection

        path = None if hasattr(source, "read") else os.path.abspath(os.fspath(source))
        selection = Selection(
            Platform.of(platform), platform is not None, all_platforms, reference, position,
            None if path is None else _stem(path), form, self._given(name),
            None if policy is None else partial(_admit, policy, path and os.path.realpath(path)),
        )  # fmt: skip
        with callbacks() as own, self._explaining("load"):
            records = load_source(
                self._handle, source, selection, keep_blobs=keep_blobs, progress=own.progress(progress),
                check=own.check(check),
            )  # fmt: skip
        return self._images(records)

    def pull(
        self,
        source: str,
        *,
        platform: Platform | str | None = None,
        all_platforms: bool = False,
        name: str | None = None,
        keep_blobs: bool = False,
        access: Access | None = None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Bring images in from a registry, or through another transport.

        Layers are received several at a time and laid down while they arrive; those that the store has are not asked
        for. What was received of a pull that fails or is killed is kept, and the next one goes on from there.

        Args:
            source: a name, ``docker://NAME``, ``docker-archive:FILE[:REF]``, ``oci-archive:FILE[:REF]``,
                ``oci:DIR[:REF]`` or ``dir:DIR``.
            platform: as for :meth:`load`.
            all_platforms: as for :meth:`load`.
            name: as for :meth:`load`.
            keep_blobs: as for :meth:`load`.
            access: how registries are reached; None uses no credentials and no configuration files.
            progress: told about every layer, from several threads, one at a time.
            check: polled several times a second; what it raises ends the pull.

        Returns:
            The images; see :meth:`load`.

        Raises:
            InvalidReference: the text is neither a name nor a transport.
            UnsupportedFormat: the transport is known, but not supported.
            NotFound: there is no such image, or none for the platform.
            Unauthorized, Denied, RateLimited, Unreachable, RegistryError: the registry refuses, or cannot be reached.
            LayerfsError: inside a trio task, where this must not be called.

        Otherwise as :meth:`load`, blocking and atomicity included.
        """
        from layerfs.registry.access import Access

        access = access or Access()
        with callbacks() as own, self._explaining("pull"):
            progress, check = own.progress(progress), own.check(check)
            if not is_registry(source):
                from layerfs.registry.archive import find_archive

                wanted = find_archive(source, access)
                if wanted.transport == "dir":
                    return self._images(
                        self._load_directory(
                            wanted.path, platform, all_platforms=all_platforms, name=name, keep_blobs=keep_blobs,
                            progress=progress, check=check,
                        )
                    )  # fmt: skip
                return self.load(
                    wanted.path, platform=platform, all_platforms=all_platforms, reference=wanted.reference,
                    position=wanted.index, form="docker" if wanted.transport == "docker-archive" else "oci", name=name,
                    keep_blobs=keep_blobs, progress=progress, check=check,
                )  # fmt: skip
            refuse_inside_trio()
            from layerfs.registry.pull import LayerVanished, Pull
            from layerfs.registry.remote import Registries

            def attempt() -> list[catalog.ImageRecord]:
                with Registries.open(access, check) as registries:
                    remote = self._plan(registries, source, platform, all_platforms=all_platforms, name=name)
                    with Pull(
                        self._handle, remote, access, keep_blobs=keep_blobs, progress=progress, check=check
                    ) as pull:
                        if not pull.wanted:
                            return pull.lay_down()
                        from layerfs.api.together import pull_layers

                        return pull_layers(pull, registries.http, access.jobs, check)

            try:
                return self._images(attempt())
            except LayerVanished:  # it is received now
                return self._images(attempt())

    def push(
        self,
        image: str | Image,
        destination: str | None = None,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        access: Access | None = None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> PushedImage:
        """Push an image to a registry.

        The image's own manifest is pushed, byte for byte, if every blob that it names is on the registry, can be
        mounted there from another repository, or is in the store: uncompressed layers are, compressed ones are with
        ``keep_blobs``. Otherwise the layers that cannot be had so are compressed anew, and the manifest differs.

        Args:
            image: what to push.
            destination: a name with a tag, ``docker://`` before it or not; None means the name that ``image`` is.
            compression: of all layers: ``none``, ``gzip`` or ``zstd``; None leaves them as the manifest has them.
            level: of the compression; None takes what is fast.
            access: how registries are reached.
            progress: told about every layer, from several threads, one at a time.
            check: polled several times a second; what it raises ends the push.

        Raises:
            NotFound: no such image.
            InvalidReference: the destination is no name, or has a digest; or there is no such compression level.
            Unauthorized, Denied, RateLimited, Unreachable, RegistryError: the registry refuses, or cannot be reached.
            IntegrityError: the registry says that it has stored something else.
            LayerfsError: inside a trio task, where this must not be called.

        Blocking: reads and sends all layers that the registry does not have.
        Atomicity: the name on the registry changes when everything is there.
        """
        from layerfs.api.together import push_layers
        from layerfs.registry.access import Access
        from layerfs.registry.push import Push
        from layerfs.registry.remote import Registries
        from layerfs.values import PushedImage

        access = access or Access()
        refuse_inside_trio()
        record, reference = self._pushed(image, destination)
        with callbacks() as own, self._explaining("push"), Registries.open(access, own.check(check)) as registries:
            progress, check = own.progress(progress), own.check(check)
            push = Push(
                self._handle, record, registries.write_to(reference), access, compression=compression, level=level,
                progress=progress, check=check,
            )  # fmt: skip
            digest = push_layers(push, registries.http, access.jobs, reference.tag or DEFAULT_TAG, check)
        return PushedImage(reference, digest)

    def _pushed(self, image: str | Image, destination: str | None) -> tuple[catalog.ImageRecord, Reference]:
        record = self._sent(image)
        if destination is None:
            destination = self._own_name(image, record)
        if not is_registry(destination):
            raise InvalidReference(
                f"{destination} is on no registry",
                hint=f"Use: layerfs copy store:IMAGE TRANSPORT:PATH. An image of that name goes to docker://{destination}",
            )
        reference = Reference.parse(registry_name(destination)).with_default_tag()
        if reference.digest is not None:
            raise InvalidReference(f"{destination} has a digest: an image is pushed to a repository and a tag")
        return record, reference

    def _given(self, name: str | None) -> Reference | None:
        """Return the name that an image shall get."""
        return None if name is None else catalog.name_to_give(self._handle, name)

    def _own_name(self, image: str | Image, record: catalog.ImageRecord) -> str:
        """Return what an image was called that is to be pushed under its own name."""
        names = catalog.image_names(self._handle, record)
        found = catalog.name_among(image, names) if isinstance(image, str) else None
        if isinstance(image, str) and catalog.digest_in(image) is not None:
            return image  # refused for that
        if isinstance(image, str) and found is not None and found == str(Reference.parse(image).with_default_tag()):
            return image
        # An ID would be taken for the name of a repository on docker.io, and so would what stands below localhost/.
        raise InvalidReference(
            f"{found or record.digest.short} is no name to push to",
            hint=f"Push it as {' or '.join(names[:3])}, or name a destination." if names else "Name a destination.",
        )

    def _plan(
        self,
        registries: Registries,
        source: str,
        platform: Platform | str | None,
        *,
        all_platforms: bool,
        name: str | None,
    ) -> RemoteImages:
        from layerfs.registry.plan import Selection
        from layerfs.registry.remote import plan_remote

        selection = Selection(Platform.of(platform), platform is not None, all_platforms, name=self._given(name))
        policy = registries.access.read_policy()
        return plan_remote(self._handle, registries, registry_name(source), selection, policy)

    def _load_directory(
        self,
        path: str,
        platform: Platform | str | None,
        *,
        all_platforms: bool,
        name: str | None,
        keep_blobs: bool,
        progress: Progress | None,
        check: Callable[[], None] | None,
    ) -> list[catalog.ImageRecord]:
        from layerfs.registry.image_directory import ImageDirectory
        from layerfs.registry.load import load_archive
        from layerfs.registry.plan import Selection

        selection = Selection(Platform.of(platform), platform is not None, all_platforms, name=self._given(name))
        members = ImageDirectory(path)
        try:
            return load_archive(self._handle, members, selection, keep_blobs=keep_blobs, progress=progress, check=check)
        finally:
            members.close()

    @contextmanager
    def _explaining(self, what: str) -> Iterator[None]:
        """Turn errors of the operating system into errors of the store."""
        try:
            yield
        except OSError as error:
            if isinstance(error, MountError):
                raise
            root = self._handle.layout.root
            hint = None
            if error.errno in (ENOSPC, EDQUOT):
                hint = f"Free space on the file system of {root}, with layerfs gc or otherwise, and try again."
            kind = StoreReadOnly if error.errno == EROFS else StoreError
            raise kind(f"{what} failed in the store {root}: {_explain(error)}", root=root, hint=hint) from error


def _stem(path: str) -> str | None:
    """Return what images of an archive are called that have only a tag: the file's name without its endings."""
    name = os.path.basename(os.path.abspath(path)).lower().partition(".")[0]
    return name or None


def _admit(policy: Policy, path: str | None, form: Form) -> None:
    """Ask a policy about an archive, which is nowhere if it comes through a pipe."""
    from layerfs.formats.policy import path_scopes

    is_layout = path is not None and os.path.isdir(path)
    transport = "docker-archive" if form == "docker" else "oci" if is_layout else "oci-archive"
    policy.check(transport, [] if path is None else path_scopes(path), path or "standard input")


def _explain(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"
