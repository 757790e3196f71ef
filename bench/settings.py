"""How peers are run, in the words that stand beside their numbers: fair, and the fastest that they document."""

from __future__ import annotations

__all__ = ["setting"]

#: By the beginning of a variant's name; the longest that fits counts.
_SETTINGS = {
    "podman": "root, storage driver overlay of the kernel, state on the same new file system; gzip by its own pgzip on"
    " all CPUs; syncs nothing",
    "podman run": "runc, no network, no log driver, cgroupfs",
    "podman save": "docker-archive to a pipe",
    "ctr": "a containerd of its own without CRI, snapshotter overlayfs; gzip by unpigz where pigz is installed; syncs"
    " nothing",
    "ctr run": "runc, no network",
    "ctr snapshots diff": "uncompressed layer tar",
    "umoci": "root, one directory, gzip by its own pgzip; syncs nothing",
    "buildah commit": "root, storage driver overlay; syncs nothing",
    "skopeo copy": "layers stay compressed as they are",
    "fuse-overlayfs": "root, its defaults: one thread, names and attributes kept by the kernel without end",
    "unionfs-fuse": "cow, its default ten threads",
    "kernel overlayfs": "its defaults: syncs a file that is copied up; layerfs writes it later, fuse-overlayfs never",
    "mkfs.erofs --tar": "one image with data per layer; checks, stacks and shares nothing",
    "gzip, sha256sum": "both of Debian; this sha256sum uses no SHA instructions",
    "openssl": "reads the archive and digests it with SHA instructions",
    "ext4": "on a loop device with direct I/O, as all others",
}


def setting(variant: str) -> str:
    """Return how a variant is run, if there is anything to say."""
    found = [name for name in _SETTINGS if variant.startswith(name)]
    return _SETTINGS[max(found, key=len)] if found else ""
