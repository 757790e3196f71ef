"""Finding the credential for a repository: auth files in their order, and the helpers that they name.

Source: containers-auth.json(5); docker's credential helper protocol.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from layerfs.errors import FormatError, LayerfsError, RegistryError
from layerfs.formats.auth_file import HUB_KEY, TOKEN_USER, AuthFile, Credential, lookup_keys
from layerfs.formats.document import JsonObject, parse_document
from layerfs.formats.reference import DEFAULT_DOMAIN
from layerfs.formats.registries_conf import AUTH_FILES
from layerfs.registry.access import Access, read_optional

__all__ = ["Credentials", "ask_helper", "is_dockercfg", "list_helper", "read_auth_file"]

_log = logging.getLogger(__name__)

#: Seconds for a helper to answer; some ask a key ring that has to wake up first, none should ask the user.
_HELPER_TIMEOUT = 30.0

_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What helpers say when they know nothing, which is an answer and no error.
_NOTHING = ("credentials not found", "no credentials server url", "no credentials username")


class HelperMissing(RegistryError):
    """A credential helper is named, and not installed."""


class Credentials:
    """Looks credentials up, each once. Thread-safe."""

    def __init__(self, access: Access, helpers: Sequence[str] = (AUTH_FILES,)) -> None:
        """Prepare; nothing is read before the first look.

        Args:
            access: which files there are.
            helpers: the credential helpers of registries.conf, in order.
        """
        self._access = access
        self._helpers = tuple(helpers)
        self._found: dict[tuple[str, str], Credential | None] = {}
        self._lock = threading.Lock()

    def find(self, domain: str, path: str = "", *, named: bool = True) -> Credential | None:
        """Return what opens a repository, or None for no credential.

        Args:
            domain: its registry.
            path: its path there.
            named: whether it is the registry that the user named: only that one gets the credential that came with
                the command, and no mirror of it.

        Raises:
            FormatError: a file is broken.
            LayerfsError: one cannot be read, or a helper failed.

        Blocking: while a helper runs.
        """
        if self._access.anonymous:
            return None
        if self._access.credential is not None and named:
            return self._access.credential
        with self._lock:
            key = (domain, path)
            if key not in self._found:
                self._found[key] = self._look(domain, path)
            return self._found[key]

    def _look(self, domain: str, path: str) -> Credential | None:
        access = self._access
        if access.required_auth_file is not None:
            return self._in_file(access.required_auth_file, domain, path, required=True)
        failures: list[RegistryError] = []
        for helper in self._helpers:
            try:
                found = self._in_files(domain, path) if helper == AUTH_FILES else ask_helper(helper, domain)
            except RegistryError as error:
                failures.append(error)  # another one may know all the same
                continue
            if found is not None:
                return found
        if failures:
            raise failures[0]
        return None

    def _in_files(self, domain: str, path: str) -> Credential | None:
        found = (self._in_file(name, domain, path) for name in self._access.auth_files)
        return next((credential for credential in found if credential is not None), None)

    def _in_file(self, name: str, domain: str, path: str, *, required: bool = False) -> Credential | None:
        file = read_auth_file(name)
        if file is None:
            if required:
                raise LayerfsError(f"auth file {name} does not exist")
            return None
        helper = file.helper(domain)
        if helper is not None:
            try:
                found = ask_helper(helper, HUB_KEY if domain == DEFAULT_DOMAIN else domain)
            except HelperMissing as error:
                if file.is_own_helper(domain):
                    raise
                # It is for all registries, also those that want no credentials.
                _log.warning("%s", error)
                found = None
            if found is not None:
                return found
        with _naming(name):
            return next((found for key in lookup_keys(domain, path) if (found := file.find(key)) is not None), None)


def read_auth_file(path: str) -> AuthFile | None:
    """Return what a file says, or None when there is none.

    Raises:
        FormatError: it is broken.
        LayerfsError: it cannot be read.
    """
    raw = read_optional(path)
    if raw is None:
        return None
    with _naming(path):
        return AuthFile.parse(raw, legacy=is_dockercfg(path))


def is_dockercfg(path: str) -> bool:
    """Whether a file is in the form that docker had before it had others in ``config.json``."""
    return os.path.basename(path) == ".dockercfg"


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say of a broken file which one it is."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def ask_helper(name: str, server: str, action: str = "get", credential: Credential | None = None) -> Credential | None:
    """Run a credential helper.

    Args:
        name: what comes behind ``docker-credential-``.
        server: the registry, as the helper knows it.
        action: ``get``, ``store`` or ``erase``.
        credential: to store.

    Returns:
        What it knows, for ``get``; None for nothing.

    Raises:
        RegistryError: it is not installed, failed or answered nonsense. What it printed is not shown but for its
            last line of an error, which the protocol means for people.
    """
    given = server
    if credential is not None:
        import json  # noqa: PLC0415 - only login comes here

        secret = credential.identity_token or credential.password
        user = TOKEN_USER if credential.identity_token else credential.username
        given = json.dumps({"ServerURL": server, "Username": user, "Secret": secret})
    document = _run_helper(name, action, given)
    if action != "get" or document is None:
        return None
    try:
        answer = JsonObject(document)
        user, secret = answer.optional_text("Username") or "", answer.optional_text("Secret") or ""
    except FormatError:
        raise RegistryError(f"credential helper docker-credential-{name} answered nonsense") from None
    if not secret and not user:
        return None
    return Credential("", "", secret) if user == TOKEN_USER else Credential(user, secret)


def list_helper(name: str) -> list[str]:
    """Return the registries that a credential helper knows, as it spells them.

    Raises:
        RegistryError: as :func:`ask_helper`.
    """
    return sorted(_run_helper(name, "list", "") or {})


def _run_helper(name: str, action: str, given: str) -> dict[str, Any] | None:
    """Run a helper; return what it answers to ``get`` and ``list``, None if it knows nothing or is not asked."""
    if _HELPER_NAME.fullmatch(name) is None:
        raise RegistryError(f"not the name of a credential helper: {name!r:.80}")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, action], input=given.encode(), capture_output=True, timeout=_HELPER_TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise HelperMissing(
            f"credential helper {program} is not installed", hint="Install it, or remove it from the auth file."
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        text = "no answer in time" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise RegistryError(f"credential helper {program}: {text}") from None
    if done.returncode:
        text = done.stdout.decode(errors="replace")
        if any(nothing in text.lower() for nothing in _NOTHING):
            return None
        # A helper may have printed a secret before it failed.
        lines = [" ".join(line.split()) for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("{")]
        said = lines[-1][:200] if lines else f"exit {done.returncode}"
        raise RegistryError(f"credential helper {program} {action} failed: {said}")
    if action not in ("get", "list"):
        return None
    try:
        document = parse_document(done.stdout, program)
    except FormatError:
        raise RegistryError(f"credential helper {program} answered nonsense") from None
    return dict(document)
