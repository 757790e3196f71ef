"""How registries are reached: everything that a user may set, as one immutable value.

Nothing here reads the environment: which files exist, and in which order they count, is said by who makes the value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.formats.auth_file import Credential
    from layerfs.formats.policy import Policy
    from layerfs.formats.registries_conf import RegistriesConfig

# The parsers are imported where they are used: every verb imports this module, and few read these files.
# ruff: noqa: PLC0415

__all__ = ["DEFAULT_JOBS", "Access", "read_optional"]

#: Layers transferred at a time, as by docker.
DEFAULT_JOBS = 3

#: Bytes of a configuration file that are read.
_MAX_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class Access:
    """How registries are reached.

    Attributes:
        auth_files: files with credentials, the first that has one counts; one called ``.dockercfg`` is in docker's
            old form. Those that do not exist are passed over.
        required_auth_file: one that has to exist, instead of all others; None for none.
        credential: for the registry that is named first, instead of what files say; its mirrors do not get it.
        anonymous: use no credentials at all.
        token: a bearer token to send as it is, to the registry that is named first.
        authorities: directories with certificate authorities, all of whose files are trusted besides the machine's.
        certificate_roots: directories with one directory of certificates per registry, all that exist count.
        certificates: one directory of certificates for every registry, instead of those.
        verify_tls: False allows bad certificates and plain HTTP everywhere; True nowhere, whatever registries.conf
            says; None leaves it to registries.conf.
        registries: files of registries.conf, the main one first.
        policy: the trust policy's file, which has to exist; None accepts everything.
        proxies: URL of the proxy by scheme, or under ``all``; and under ``no`` the hosts that need none.
        jobs: layers transferred at a time.
        attempts: how often a request that may succeed later is made before its error counts.
        retry_delay: seconds before the second attempt; doubled for each further one, up to a minute.
        timeout: seconds without any answer after which a connection counts as dead.
    """

    auth_files: tuple[str, ...] = ()
    required_auth_file: str | None = None
    credential: Credential | None = None
    anonymous: bool = False
    token: str | None = field(default=None, repr=False)
    authorities: tuple[str, ...] = ()
    certificate_roots: tuple[str, ...] = ()
    certificates: str | None = None
    verify_tls: bool | None = None
    registries: tuple[str, ...] = ()
    policy: str | None = None
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    jobs: int = DEFAULT_JOBS
    attempts: int = 6
    retry_delay: float = 1.0
    timeout: float = 60.0

    def read_registries(self) -> RegistriesConfig:
        """Read the files of registries.conf.

        Raises:
            FormatError: one is broken.
            LayerfsError: one cannot be read.
        """
        from layerfs.formats.registries_conf import RegistriesConfig

        files = [(path, read_optional(path)) for path in self.registries]
        return RegistriesConfig.parse((path, raw) for path, raw in files if raw is not None)

    def read_policy(self) -> Policy | None:
        """Read the trust policy; None when there is none.

        Raises:
            FormatError: it is broken.
            LayerfsError: it cannot be read.
        """
        from layerfs.formats.policy import Policy

        if self.policy is None:
            return None
        raw = read_optional(self.policy)
        if raw is None:
            # Without it nothing would be refused, which is not what naming one means.
            raise LayerfsError(f"policy file {self.policy} does not exist")
        return Policy.parse(raw, self.policy)


def read_optional(path: str) -> bytes | None:
    """Return the bytes of a configuration file, or None when there is none.

    Raises:
        LayerfsError: it is there and cannot be read, or is too large.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LayerfsError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    if len(raw) > _MAX_FILE:
        raise LayerfsError(f"{path} has more than {_MAX_FILE} bytes")
    return raw
