"""What a FUSE mount is to be: a value that goes from the process that asks to the process that serves."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from layerfs.union.owner import OwnerMap, Range

__all__ = ["FuseSpecification"]

#: Seconds for which the kernel may keep names, missing names and attributes. Nothing changes behind its back, so the
#: number only has to be large.
_FOREVER = 86400.0


@dataclass(frozen=True, slots=True)
class FuseSpecification:
    """A FUSE mount.

    Attributes:
        target: the directory to cover, absolute.
        source: what the mount table shows as source.
        tree: path of a merged tree below; None when there are directories.
        devices: the layer tars of the tree's device table, in its order.
        lowers: directories below, top first, when there is no tree.
        upper: directory that takes the changes; None makes the mount read-only.
        work: directory beside it, on its file system.
        read_only: whether nothing may be written.
        nosuid: set-user-ID bits have no effect.
        nodev: device nodes cannot be opened.
        noexec: nothing can be executed.
        noatime: reading leaves the atimes of files and directories alone, as it always does in layers and where nothing
            may be written.
        allow_other: whether other users may look inside.
        userxattr: whether marks are ``user.overlay.*``; None decides by what this process may do.
        owners: how owners are mapped.
        override: name of the xattr that keeps owners and modes; None for none, unless this process may give no file
            away.
        sync: False answers every fsync at once.
        acl: whether POSIX ACLs are enforced.
        static_nlink: show one link for every directory.
        timeout: seconds for which the kernel keeps what it was told.
        pyfuse3: whether requests come by way of pyfuse3 and libfuse instead of from /dev/fuse.
    """

    target: str
    source: str = "layerfs"
    tree: str | None = None
    devices: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    read_only: bool = False
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    noatime: bool = False
    allow_other: bool = False
    userxattr: bool | None = None
    owners: OwnerMap | None = None
    override: str | None = None
    sync: bool = True
    acl: bool = True
    static_nlink: bool = False
    timeout: float = _FOREVER
    pyfuse3: bool = False

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> FuseSpecification:
        """Return what :meth:`to_json` was called on.

        Raises:
            ValueError, TypeError: it is something else.
        """
        fields = json.loads(text)
        owners = fields.pop("owners")
        for name in ("devices", "lowers"):
            fields[name] = tuple(fields[name])
        if owners is not None:
            for name in ("users", "groups"):
                owners[name] = tuple(Range(**entry) for entry in owners[name])
            owners = OwnerMap(**owners)
        return cls(owners=owners, **fields)
