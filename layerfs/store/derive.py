"""Making trees: a layer's own from its tar, an image's merged one from its layers.

Both are pure functions of the store. So a tree that is missing or damaged is never lost data, and a tree can be checked
by making it again and comparing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from layerfs.errors import DigestMismatch, IntegrityError, LayerfsError, NotFound, quoted
from layerfs.formats.digest import Digest, chain_id, new_hash
from layerfs.formats.erofs.layout import BLOCK
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.erofs.writer import Device, write_tree
from layerfs.formats.merge import apply_layer, empty_tree, walk
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.reader import TarReader
from layerfs.formats.tree import LayerTree, Node
from layerfs.linux.durable import fsync_directory, write_document
from layerfs.linux.sparse import is_same, is_zero
from layerfs.store.carry import MANY, small_layers
from layerfs.store.database import stored_digest
from layerfs.store.handle import StoreHandle
from layerfs.store.layer import LayerRecord, chain_layers, device_tag, find_layer, open_tree, read_layer
from layerfs.store.layer_writer import MIN_SHARED, LayerKey, spread_range
from layerfs.store.nodes import read_nodes
from layerfs.store.poll import raise_own

__all__ = [
    "TREE_LATER",
    "LayerKeys",
    "aligned",
    "derive_layer_tree",
    "encode_layer_tree",
    "encode_merged_tree",
    "is_tree_later",
    "merge_layers",
    "merge_stored",
    "restore_record",
    "rewrite_merged_trees",
    "tree_uuid",
]


#: Stands in place of a merged tree that is made when it is first needed. No tree, so whoever opens it makes the tree.
TREE_LATER = b"layerfs: this tree is made when it is first needed\n"


def is_tree_later(path: str) -> bool:
    """Return whether a merged tree has not been needed yet: its place may be empty too, after a power cut."""
    try:
        with open(path, "rb") as file:
            return file.read(len(TREE_LATER) + 1) in (TREE_LATER, b"")
    except FileNotFoundError:
        return True


def tree_uuid(kind: str, digest: Digest) -> bytes:
    """Return the UUID of a tree: a version 8 UUID of RFC 9562, derived from what the tree shows."""
    raw = bytearray(bytes.fromhex(Digest.of(f"layerfs {kind} {digest}".encode()).hex)[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def aligned(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same stream in pieces whose lengths are multiples of 512, but for the last."""
    rest = b""
    for piece in pieces:
        whole = rest + piece if rest else piece
        cut = len(whole) & ~(BLOCK - 1)
        rest = whole[cut:]
        if cut:
            yield whole[:cut] if rest else whole
    if rest:
        yield rest


def encode_layer_tree(root: Node, own: LayerKey, donors: Iterable[LayerKey]) -> bytes:
    """Return the image of one layer's tree.

    Args:
        root: its finished tree.
        own: the layer, its diffID and size known.
        donors: the layers that its files borrow from, in any order and number.
    """
    others = {donor.known: donor for donor in donors if donor is not own}
    devices = [_device(own), *(_device(others[diff_id]) for diff_id in sorted(others))]
    return write_tree(root, devices, tree_uuid("layer", own.known))


def derive_layer_tree(handle: StoreHandle, layer: LayerRecord, *, check: Callable[[], None] | None = None) -> bytes:
    """Read a layer's tar, verify it against its diffID, and return the image that its tree must be.

    Raises:
        DigestMismatch: the tar is not what it was.
        IntegrityError: it is missing or cut short, or a donor is.
    """
    keys = LayerKeys(handle)
    own = keys.get(layer.diff_id)
    tree, reader = LayerTree(own), TarReader()
    hasher = new_hash(layer.diff_id.algorithm)
    sparse: list[tuple[Member, Node]] = []
    for piece in aligned(read_layer(handle, layer, check=check)):
        hasher.update(piece)
        for member in reader.feed(piece):
            node = tree.add(member)
            if node is not None and member.sparse is not None:
                sparse.append((member, node))
    actual = Digest(layer.diff_id.algorithm, hasher.hexdigest())
    if actual != layer.diff_id:
        raise DigestMismatch("layer in the store", expected=str(layer.diff_id), actual=str(actual), size=layer.tar_size)
    end = -(-layer.tar_size // BLOCK) * BLOCK
    for member, node in sparse:
        node.offset, end = spread_range(end, member)
    if sparse:
        _verify_spread(handle.layout.layer_tar(layer.diff_id), sparse)
    root = tree.finish()
    extents = {row[0]: (keys.get(stored_digest(row[1])), row[2]) for row in handle.database.connection.execute(
        "SELECT extent.offset, layer.diff_id, extent.donor_offset FROM extent JOIN layer ON layer.id = extent.donor"
        " WHERE extent.layer = ?", (layer.id,)
    )}  # fmt: skip
    for node in walk(root):
        if node.device is own and node.size >= MIN_SHARED and (found := extents.get(node.offset)) is not None:
            node.device, node.offset = found
    return encode_layer_tree(root, own, (donor for donor, _ in extents.values()))


def _verify_spread(path: str, sparse: Sequence[tuple[Member, Node]]) -> None:
    """Compare the sparse files behind a layer's tar, which no digest covers, with what the verified tar has of them.

    Raises:
        IntegrityError: one differs.
    """
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        for member, node in sparse:
            assert member.sparse is not None
            source, filled = member.data_offset, 0
            for offset, length in (*member.sparse, (member.size, 0)):
                if not is_zero(fd, node.offset + filled, offset - filled):
                    raise IntegrityError(f"sparse file {quoted(member.name)} has bytes where it is empty")
                if not is_same(fd, source, node.offset + offset, length):
                    raise IntegrityError(f"sparse file {quoted(member.name)} is not what the tar has of it")
                source, filled = source + length, offset + length


def restore_record(handle: StoreHandle, layer: LayerRecord, *, check: Callable[[], None] | None = None) -> None:
    """Bring a layer that does not look as recorded back in order, if its tar still is what it was.

    The tar is read and verified, the tree is written again if it differs, and the record takes over the files' times.

    Raises:
        IntegrityError: the tar is damaged; only a new copy helps.
        OSError: ENOENT, EIO.
    """
    image = derive_layer_tree(handle, layer, check=check)
    path = handle.layout.layer_tree(layer.diff_id)
    try:
        with open(path, "rb") as file:
            same = file.read() == image
    except OSError:
        same = False
    if not same:
        write_document(path, image, sync=handle.sync)
    tar, tree = os.stat(handle.layout.layer_tar(layer.diff_id)), os.stat(path)
    if tar.st_size != layer.file_size:
        raise IntegrityError(f"layer file has {tar.st_size} bytes instead of {layer.file_size}")
    with handle.database.transaction() as connection:
        connection.execute(
            "UPDATE layer SET tar_mtime = ?, tree_size = ?, tree_mtime = ? WHERE id = ?",
            (tar.st_mtime_ns, tree.st_size, tree.st_mtime_ns, layer.id),
        )


def merge_layers(
    layers: Sequence[tuple[Node | Tree, LayerKey]],
    keys: LayerKeys,
    *,
    start: Node | None = None,
    below: Sequence[LayerKey] = (),
) -> bytes:
    """Return the image of the merged tree of a chain of layers.

    Args:
        layers: bottom first: the layer's tree, in memory or on disk, and its key.
        keys: of the store that the layers are in, with those of ``layers`` among them.
        start: the merged tree of the layers below these, which is changed; None starts with none.
        below: the keys of those layers, bottom first.

    Raises:
        FormatError: the layers do not fit together (a hard link into nowhere), or a tree is damaged.
        IntegrityError: a layer's tar is missing or cut short; the tars of few layers are not looked at.
    """
    merged = empty_tree() if start is None else start
    for tree, _ in layers:
        apply_layer(merged, tree if isinstance(tree, Node) else read_nodes(tree, keys.get))
    return encode_merged_tree(keys.handle, merged, [*below, *(key for _, key in layers)])


def encode_merged_tree(handle: StoreHandle, merged: Node, chain: Sequence[LayerKey]) -> bytes:
    """Return the image of a merged tree.

    Its devices are the layers that something of it lies in, for mounting costs by the device: those of the chain from
    the bottom, then others that lend them bytes, by diffID. Where these are many, the bytes of small layers of the
    chain are carried by the image itself.

    Raises:
        IntegrityError: the tar of such a layer is missing or cut short.
    """
    used = {node.device for node in walk(merged) if node.device is not None}
    own = {key.known: key for key in chain if key in used}
    others = {key.known: key for key in used if isinstance(key, LayerKey) and key.known not in own}
    carried = small_layers(handle, merged, chain) if len(own) > MANY else []
    inside = {layer.key for layer in carried}
    named = [*(key for key in own.values() if key not in inside), *(others[diff_id] for diff_id in sorted(others))]
    devices = [_device(key) for key in named]
    return write_tree(merged, devices, tree_uuid("chain", chain_id([key.known for key in chain])), carried)


def merge_stored(handle: StoreHandle, layers: Sequence[LayerRecord]) -> bytes:
    """Return the image of the merged tree of a chain of layers of the store, bottom first.

    Raises:
        FormatError: a layer's tree is damaged, or they do not fit together.
        IntegrityError: a layer's tar is missing or cut short.
        OSError: ENOENT for a tree.
    """
    keys = LayerKeys(handle)
    pairs = [(open_tree(handle.layout.layer_tree(layer.diff_id)), keys.get(layer.diff_id)) for layer in layers]
    return merge_layers(pairs, keys)


def rewrite_merged_trees(handle: StoreHandle, layers: Sequence[LayerRecord], *, carrying: bool = False) -> None:
    """Write the merged trees of all images that have one of some layers anew, each once.

    One that cannot be made now is made when it is needed, as is one that was not needed yet.

    Args:
        handle: the store.
        layers: the layers.
        carrying: whether only trees of many layers are meant, which may carry these layers' bytes.

    Raises:
        OSError: ENOSPC, EIO.
    """
    marks = ", ".join("?" * len(layers))
    rows = handle.database.connection.execute(
        "SELECT chain_id, min(image.id) FROM image JOIN image_layer ON image_layer.image = image.id"
        f" WHERE image_layer.layer IN ({marks}) GROUP BY chain_id", [layer.id for layer in layers],
    ).fetchall()  # fmt: skip
    for chain, image in rows:
        path = handle.layout.merged_tree(stored_digest(chain))
        with handle.trees_kept():
            own = chain_layers(handle, image)
            if is_tree_later(path) or (carrying and len(own) <= MANY):
                continue
            try:
                if chain_id([layer.diff_id for layer in own]) != stored_digest(chain):
                    raise NotFound("image", str(chain))
                merged = merge_stored(handle, own)
            except (OSError, LayerfsError) as error:
                raise_own(error)
                # Another of its layers is damaged too.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                fsync_directory(os.path.dirname(path), sync=handle.sync)
                continue
            write_document(path, merged, sync=handle.sync)


class LayerKeys:
    """Hands out one key per layer of the store, for trees read from disk.

    Attributes:
        handle: the store.
    """

    def __init__(self, handle: StoreHandle) -> None:
        """Start without keys."""
        self.handle = handle
        self._keys: dict[Digest, LayerKey] = {}

    def get(self, diff_id: Digest) -> LayerKey:
        """Return the key of a layer that the store has, always the same object.

        Raises:
            IntegrityError: the store has no such layer.
        """
        key = self._keys.get(diff_id)
        if key is None:
            layer = find_layer(self.handle, diff_id)
            if layer is None:
                raise IntegrityError(f"a tree refers to layer {diff_id}, which is not in the store")
            key = self._keys[diff_id] = LayerKey(diff_id, layer.file_size)
        return key

    def add(self, key: LayerKey) -> None:
        """Make a key that is in use the one for its layer."""
        self._keys[key.known] = key


def _device(key: LayerKey) -> Device:
    return Device(key, device_tag(key.known), -(-key.file_size // BLOCK))
