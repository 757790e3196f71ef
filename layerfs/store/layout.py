"""Where everything of a store lies. Path arithmetic, apart from :meth:`Layout.create`.

    ROOT/store.json                    format version and features
    ROOT/store.db                      SQLite metadata
    ROOT/store.db.spare                room for it when the disk is full
    ROOT/blobs/ALG/HEX                 JSON documents as received
    ROOT/layers/ALG/HEX/layer.tar      HEX is the diffID
    ROOT/layers/ALG/HEX/tree.erofs
    ROOT/images/ALG/HEX.erofs          HEX is the chainID: the merged tree
    ROOT/unpacked/ALG/HEX/             layers as directories, made on demand for mounts without EROFS
    ROOT/snapshots/ID/{upper,work}     writable container layers
    ROOT/snapshots/ID/dressed          there when upper has the attributes of the image's root; how owners are kept
    ROOT/ingest/RANDOM/                work in progress
    ROOT/partial/ALG-HEX               what pulls received of blobs whose image is not there yet
    ROOT/locks/                        lock files
    RUNROOT/                           mount records; locks of targets for a store that cannot be written to

ALG is sha256 or sha512, HEX a digest of it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from layerfs.formats.digest import Digest
from layerfs.linux.durable import fsync_directory

__all__ = ["Layout"]

_DIRECTORIES = (
    "blobs/sha256", "blobs/sha512", "layers/sha256", "layers/sha512", "images/sha256", "images/sha512",
    "unpacked/sha256", "unpacked/sha512", "snapshots", "ingest", "locks",
    "partial",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store.

    Attributes:
        root: absolute path of the store.
        runroot: absolute path of what does not outlive a boot.
    """

    root: str
    runroot: str

    @property
    def marker(self) -> str:
        """The file that says which format the store has."""
        return os.path.join(self.root, "store.json")

    @property
    def database(self) -> str:
        """The SQLite file."""
        return os.path.join(self.root, "store.db")

    @property
    def ingest(self) -> str:
        """The directory of work in progress."""
        return os.path.join(self.root, "ingest")

    def blob(self, digest: Digest) -> str:
        """Return the path of a document."""
        return os.path.join(self.root, "blobs", digest.algorithm, digest.hex)

    def layer(self, diff_id: Digest) -> str:
        """Return the directory of a layer."""
        return os.path.join(self.root, "layers", diff_id.algorithm, diff_id.hex)

    def layer_tar(self, diff_id: Digest) -> str:
        """Return the path of a layer's tar."""
        return f"{self.root}/layers/{diff_id.algorithm}/{diff_id.hex}/layer.tar"

    def layer_tree(self, diff_id: Digest) -> str:
        """Return the path of a layer's own tree."""
        return os.path.join(self.layer(diff_id), "tree.erofs")

    def merged_tree(self, chain_id: Digest) -> str:
        """Return the path of the merged tree of a chain of layers."""
        return os.path.join(self.root, "images", chain_id.algorithm, f"{chain_id.hex}.erofs")

    def unpacked(self, diff_id: Digest) -> str:
        """Return the directory that a layer is unpacked into when a mount cannot use its tree."""
        return os.path.join(self.root, "unpacked", diff_id.algorithm, diff_id.hex)

    def unpacked_merged(self, chain_id: Digest) -> str:
        """Return the directory that a whole image is unpacked into when its layers cannot be stacked."""
        return f"{self.unpacked(chain_id)}.merged"

    def snapshot(self, identifier: str) -> str:
        """Return the directory of a container."""
        return os.path.join(self.root, "snapshots", identifier)

    def upper(self, identifier: str) -> str:
        """Return the directory of a container's writable layer, in overlayfs's form."""
        return os.path.join(self.snapshot(identifier), "upper")

    def work(self, identifier: str) -> str:
        """Return the work directory that overlayfs wants beside it."""
        return os.path.join(self.snapshot(identifier), "work")

    def part(self, digest: Digest) -> str:
        """Return the path of the received beginning of a blob."""
        return os.path.join(self.root, "partial", f"{digest.algorithm}-{digest.hex}")

    def lock(self, name: str) -> str:
        """Return the path of a lock file."""
        return os.path.join(self.root, "locks", name)

    def layer_lock(self, diff_id: Digest) -> str:
        """Return the path of the lock that a layer's maker, healer or remover holds."""
        return self.lock(f"layer-{diff_id.algorithm}-{diff_id.hex}")

    @property
    def trees_lock(self) -> str:
        """The lock on merged trees and documents: shared to write, mount or open some, exclusive to remove some."""
        return self.lock("trees")

    def create(self, *, sync: bool) -> None:
        """Make the directories that are missing, durably if ``sync``.

        The store is its owner's alone (0700): layers contain setuid programs and secrets of other users, and must not
        be reachable outside a mount (the lesson of CVE-2021-41091).

        Raises:
            OSError: as mkdir; ENOTEMPTY for a directory with something else in it, which is left as it is.
        """
        try:
            new = False
            if not stat.S_ISDIR(os.stat(self.root).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root)
        except FileNotFoundError:
            new = True
        if not new and not os.path.exists(self.marker) and not self._may_become_store():
            raise OSError(errno.ENOTEMPTY, "directory is not empty, and no store", self.root)
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        if stat.S_IMODE(os.stat(self.root).st_mode) != 0o700:
            os.chmod(self.root, 0o700)
        for name in _DIRECTORIES:
            path = os.path.join(self.root, name)
            if not os.path.isdir(path):
                os.makedirs(path, mode=0o700, exist_ok=True)
                fsync_directory(os.path.dirname(path), sync=sync)
        if new:
            fsync_directory(self.root, sync=sync)
            fsync_directory(os.path.dirname(self.root), sync=sync)

    def _may_become_store(self) -> bool:
        """Whether a directory without a marker has nothing but what a store that is being made has, or a new disk."""
        own = {name.partition("/")[0] for name in _DIRECTORIES}
        # "run" is the default runroot; a dot and the marker's name begin its temporary file.
        marker = os.path.basename(self.marker)
        return all(
            name in own or name in ("run", "lost+found", marker) or name.startswith((f".{marker}.", "store.db"))
            for name in os.listdir(self.root)
        )
