"""Questions to registries that need no store: tags, documents, whether a credential is right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from layerfs.errors import FormatError, InvalidReference, LayerfsError, NotFound, RegistryError, Unauthorized
from layerfs.formats.auth_file import HUB_KEY, AuthFile, Credential, normal_key
from layerfs.formats.digest import Digest
from layerfs.formats.oci import Descriptor, ImageConfig, Index, Manifest, check_media_type, parse_manifest_or_index
from layerfs.formats.platform import Platform
from layerfs.formats.reference import DEFAULT_DOMAIN, Reference
from layerfs.formats.registries_conf import AUTH_FILES
from layerfs.linux.durable import write_document
from layerfs.linux.lock import FileLock
from layerfs.registry.access import Access
from layerfs.registry.choice import MAX_NESTING, choose_entry
from layerfs.registry.credential import Credentials, ask_helper, is_dockercfg, list_helper, read_auth_file
from layerfs.registry.remote import Registries, find_remote, from_first, parse_received

__all__ = [
    "RemoteImage",
    "fetch_config",
    "fetch_image",
    "fetch_manifest",
    "is_logged_in",
    "list_tags",
    "log_in",
    "log_out",
    "registry_domain",
]


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image on a registry.

    Attributes:
        repository: its full name, without tag and digest.
        digest: of what the name means: the index, where there is one.
        manifest: of the image for the platform asked for.
        config: of that image.
    """

    repository: str
    digest: Digest
    manifest: Manifest
    config: ImageConfig


def list_tags(access: Access, repository: str) -> Iterator[str]:
    """Yield the tags of a repository, in the registry's order.

    Args:
        access: how registries are reached.
        repository: its name, without tag and digest.

    Raises:
        InvalidReference: it is no such name.
        NotFound: there is no such repository.
        RegistryError: the registry refuses, or cannot be reached.
    """
    with Registries.open(access) as registries:
        for reference in (names := registries.names(repository)):
            if reference.digest is not None or Reference.parse(repository).tag is not None:
                raise InvalidReference(f"a repository is expected, without tag or digest: {repository!r:.120}")
            begun = False
            try:
                for tag in registries.write_to(reference).tags():
                    begun = True
                    yield tag
            except NotFound:
                # What is gone in the middle of a list is not another registry's.
                if begun or reference == names[-1]:
                    raise
                continue
            return


def fetch_manifest(access: Access, name: str) -> bytes:
    """Return the manifest or index under a name, byte for byte as the registry has it, verified.

    Raises:
        NotFound: there is none.
        FormatError: it is neither.
        RegistryError: the registry refuses, or cannot be reached.
    """
    with Registries.open(access) as registries:
        _, _, received = find_remote(registries, name)
        parse_received(received)
        return received.raw


def fetch_config(access: Access, name: str, platform: Platform) -> bytes:
    """Return the config of an image, byte for byte; of an index, that of the image for a platform.

    Raises:
        As :func:`fetch_manifest`, and NotFound for a platform that there is not.
    """
    *_, raw = _fetch(access, name, platform)
    return raw


def fetch_image(access: Access, name: str, platform: Platform) -> RemoteImage:
    """Return what the documents of an image say; of an index, those of the image for a platform.

    Raises:
        As :func:`fetch_config`.
    """
    reference, digest, manifest, raw = _fetch(access, name, platform)
    manifest.check_config()
    config = ImageConfig.parse(raw, algorithm=manifest.config.digest.algorithm)
    return RemoteImage(f"{reference.domain}/{reference.path}", digest, manifest, config)


def _fetch(access: Access, name: str, platform: Platform) -> tuple[Reference, Digest, Manifest, bytes]:
    """Return the canonical name, the digest of what it means, the image's manifest, and its config's bytes."""
    with Registries.open(access) as registries:
        reference, places, received = find_remote(registries, name)

        def described(descriptor: Descriptor) -> bytes:
            return from_first(places, lambda place: place.described(descriptor))

        document = parse_received(received)
        digest = document.digest
        for _ in range(MAX_NESTING + 2):
            if isinstance(document, Manifest):
                return reference, digest, document, described(document.config)
            assert isinstance(document, Index)
            entry = choose_entry(document.images, platform, described)
            document = parse_manifest_or_index(described(entry), algorithm=entry.digest.algorithm)
            check_media_type(document, entry)
        raise FormatError(f"indexes are nested more than {MAX_NESTING} deep")


def registry_domain(text: str) -> str:
    """Return the registry that a user means by a host, perhaps with a scheme, or with a repository behind it.

    Raises:
        InvalidReference: it is none.
    """
    key = normal_key(text.strip()) if text.strip() else DEFAULT_DOMAIN
    host, _, path = key.partition("/")
    if "." not in host and ":" not in host and host != "localhost":
        raise InvalidReference(f"not a registry: {text!r:.120}", hint="Write its host, such as registry.example:5000.")
    Reference(host, f"{path or 'library'}/x")  # what is named may be a part of the way to repositories
    return key


def is_logged_in(access: Access, key: str) -> str | None:
    """Return the user whose credential is kept for a registry, if there is one and the registry accepts it.

    Raises:
        RegistryError: it cannot be reached.
        LayerfsError: a file or helper is broken.
    """
    domain, _, path = key.partition("/")
    access = replace(access, token=None)  # which would be what is accepted
    with Registries.open(access) as registries:
        found = Credentials(access, registries.config.credential_helpers).find(domain, path)
        if found is None:
            return None
        try:
            _check_login(registries, domain, path, min(2, access.attempts))
        except Unauthorized:
            return None
    return found.username


def _check_login(registries: Registries, domain: str, path: str, tries: int) -> None:
    scopes = (f"repository:{path}:pull",) if path else ()
    server = registries.server(domain)
    server.send("GET", "/v2/", what="a login", missing="registry", scopes=scopes, attempts=tries).close()


def log_in(access: Access, key: str, credential: Credential, auth_file: str) -> str:
    """Check a credential with its registry and keep it.

    Args:
        access: how registries are reached, but for the credential.
        key: from :func:`registry_domain`.
        credential: to keep.
        auth_file: where; made if it is not there. If it names a helper for the registry, that one keeps it. So does
            the first helper of registries.conf, where that has a list of them.

    Returns:
        Who keeps it: the file or the helper.

    Raises:
        Unauthorized: the registry does not accept it.
        RegistryError: it cannot be reached.
        LayerfsError: the file cannot be written.
    """
    domain, _, path = key.partition("/")
    with Registries.open(replace(access, credential=credential, anonymous=False, token=None)) as registries:
        try:
            _check_login(registries, domain, path, min(2, access.attempts))
        except Unauthorized as error:
            raise Unauthorized(f"{domain} does not accept this user and password", status=error.status) from None
        helpers = registries.config.credential_helpers
    failures: list[RegistryError] = []
    for helper in helpers:
        try:
            if helper == AUTH_FILES:
                return _keep(key, credential, auth_file)
            ask_helper(helper, domain, "store", credential)
        except RegistryError as error:
            failures.append(error)
        else:
            return f"docker-credential-{helper}"
    raise failures[0]


def _keep(key: str, credential: Credential, auth_file: str) -> str:
    """Keep a credential in a file, or where the file says; return where."""
    domain = key.partition("/")[0]
    with _changing(auth_file) as file:
        helper = file.helper(domain)
        if helper is not None:
            ask_helper(helper, _spelling(domain), "store", credential)
            return f"docker-credential-{helper}"
        # Docker looks for its Hub under the old URL, podman under docker.io or that.
        is_docker = os.path.basename(auth_file) == "config.json"
        _write(auth_file, file.with_credential(_spelling(key) if is_docker else key, credential))
    return auth_file


def log_out(key: str | None, auth_file: str, helpers: Sequence[str] = (AUTH_FILES,)) -> list[str]:
    """Forget the credential for a registry, or all of them.

    Args:
        key: from :func:`registry_domain`; None for all.
        auth_file: where they are.
        helpers: the credential helpers of registries.conf, all of which are asked to forget it.

    Returns:
        The registries that were forgotten.

    Raises:
        NotFound: there is no such credential.
        LayerfsError: the file cannot be written.
        RegistryError: a helper failed; the others were asked all the same.
    """
    forgotten: set[str] = set()
    failures: list[RegistryError] = []
    for helper in helpers:
        try:
            if helper == AUTH_FILES:
                forgotten.update(_forget(key, auth_file))
                continue
            for server in list_helper(helper) if key is None else [key.partition("/")[0]]:
                if ask_helper(helper, server) is not None:
                    ask_helper(helper, server, "erase")
                    forgotten.add(server if key is None else key)
        except RegistryError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    if key is not None and not forgotten:
        raise NotFound("credential", f"for {key} in {auth_file}")
    return sorted(forgotten)


def _forget(key: str | None, auth_file: str) -> list[str]:
    """Forget credentials that a file has, or the helpers that it names; return for which registries."""
    with _changing(auth_file) as file:
        if key is None:
            found = sorted({*file.credentials, *file.broken})
            raw = file.with_credential("", None)
            for each in found:
                raw = AuthFile.parse(raw, legacy=file.legacy).with_credential(each, None)
            if found:
                _write(auth_file, raw)
            return sorted({*found, *_erase_all(file)})
        domain = key.partition("/")[0]
        helper = file.helper(domain)
        known = normal_key(key) in {*file.credentials, *file.broken}
        # As log_in keeps it: helpers know registries, not what is in them.
        if helper is not None and ask_helper(helper, _spelling(domain)) is not None:
            ask_helper(helper, _spelling(domain), "erase")
            known = True
        if known:
            _write(auth_file, file.with_credential(key, None))
        return [key] if known else []


def _erase_all(file: AuthFile) -> list[str]:
    """Make all helpers of a file forget what they know; return of which registries that was.

    Raises:
        RegistryError: one failed; the others were asked all the same.
    """
    erased: list[str] = []
    failures: list[RegistryError] = []

    def erase(helper: str, server: str) -> None:
        ask_helper(helper, server, "erase")
        erased.append(server)

    for host, helper in file.helpers.items():
        server = _spelling(host)
        try:
            if ask_helper(helper, server) is not None:
                erase(helper, server)
        except RegistryError as error:
            failures.append(error)
    if file.store is not None:
        try:
            for server in list_helper(file.store):
                erase(file.store, server)
        except RegistryError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return erased


@contextmanager
def _changing(path: str) -> Iterator[AuthFile]:
    """Yield what an auth file says, while no other layerfs changes it."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        raise LayerfsError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield read_auth_file(path) or AuthFile(legacy=is_dockercfg(path))
    finally:
        lock.release(remove=True)


def _write(path: str, raw: bytes) -> None:
    try:
        write_document(os.path.realpath(path), raw, mode=0o600)
    except OSError as error:
        raise LayerfsError(f"cannot write {path}: {error.strerror}") from error


def _spelling(key: str) -> str:
    """Return how docker spells a key, for its files and for helpers: it knows its Hub by the old URL only."""
    return HUB_KEY if key == DEFAULT_DOMAIN else key
