"""How a mount behaves, whatever backend makes it.

Mounts are ``nosuid`` and ``nodev`` unless lifted. An image comes from somebody else, the target is often reachable by
every user of the machine, and one set-user-ID program or device node in it would be theirs to use. Who runs a container
from the mount lifts both; a runtime sets its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.linux.mount_api import MountAttribute

__all__ = ["MountOptions"]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a mount behaves.

    Attributes:
        nosuid: set-user-ID bits and file capabilities of programs have no effect.
        nodev: device nodes cannot be opened.
        noexec: nothing can be executed.
        userxattr: overlayfs keeps its marks in ``user.overlay.*`` instead of ``trusted.overlay.*``, for user
            namespaces.
        source: what the mount table shows as source of an overlay.
        pyfuse3: whether the FUSE backend goes through pyfuse3 and libfuse instead of /dev/fuse.
    """

    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    userxattr: bool = False
    source: str = "layerfs"
    pyfuse3: bool = False

    def attributes(self, *, read_only: bool) -> MountAttribute:
        """Return the attributes of the mount itself.

        Args:
            read_only: whether nothing may be written through it.
        """
        chosen = MountAttribute.NONE
        for wanted, attribute in (
            (read_only, MountAttribute.RDONLY),
            (self.nosuid, MountAttribute.NOSUID),
            (self.nodev, MountAttribute.NODEV),
            (self.noexec, MountAttribute.NOEXEC),
        ):
            if wanted:
                chosen |= attribute
        return chosen
