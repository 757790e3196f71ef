"""Images in the store: a config, the manifest it came with, its layers' merged tree, and its names.

How they come in is in :mod:`layerfs.store.new_image`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from layerfs.errors import Conflict, FormatError, IntegrityError, InvalidReference, NotFound
from layerfs.formats.digest import Digest, chain_id
from layerfs.formats.erofs.reader import Tree
from layerfs.formats.reference import Reference
from layerfs.linux.durable import write_document
from layerfs.store.handle import StoreHandle
from layerfs.store.layer import LayerRecord, chain_layers, open_tree

__all__ = [
    "MIN_PREFIX",
    "ImageRecord",
    "digest_in",
    "find_image",
    "find_name",
    "find_record",
    "image_indexes",
    "image_layers",
    "image_manifests",
    "image_names",
    "image_origins",
    "list_images",
    "merged_tree",
    "name_among",
    "name_manifests",
    "name_to_give",
    "possible_names",
    "references_of",
    "remove_references",
    "set_name",
]

#: Hex digits that a shortened ID needs at least; below, one typed by accident would too often find something.
MIN_PREFIX = 4

_COLUMNS = "id, digest, manifest, chain_id, loaded"

#: The image of the manifest, index or config with the digest ``?1``, and its manifest.
_BY_DIGEST = """
SELECT id, digest, found.manifest, chain_id, loaded FROM image JOIN (
    SELECT id AS image, manifest, 1 AS rank FROM image WHERE manifest = ?1
    UNION ALL SELECT image, manifest, 1 FROM name WHERE manifest = ?1
    UNION ALL SELECT image, manifest, 1 FROM origin WHERE manifest = ?1
    UNION ALL SELECT image, manifest, 2 FROM origin WHERE digest = ?1
    UNION ALL SELECT id, manifest, 3 FROM image WHERE digest = ?1
) AS found ON found.image = id ORDER BY rank, id DESC
"""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of the image table; see :mod:`layerfs.store.schema`.

    ``manifest`` is that of the name or digest by which the image was found; by its ID, the one it came with last.
    ``given`` are the names that it was given just now, by what brought it in.
    """

    id: int
    digest: Digest
    manifest: Digest
    chain_id: Digest
    loaded: int
    given: tuple[str, ...] = ()


def set_name(connection: sqlite3.Connection, name: Reference, image: int, manifest: Digest) -> None:
    """Let a name mean an image with one of its manifests, inside the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO name VALUES (?, ?, ?)", (str(name), image, str(manifest)))


def list_images(handle: StoreHandle) -> list[ImageRecord]:
    """Return all images, newest first."""
    rows = handle.database.connection.execute(f"SELECT {_COLUMNS} FROM image ORDER BY loaded DESC, id DESC")
    return [_record(row) for row in rows]


def find_record(handle: StoreHandle, digest: Digest) -> ImageRecord | None:
    """Return the image of exactly this ID, or None."""
    row = handle.database.connection.execute(
        f"SELECT {_COLUMNS} FROM image WHERE digest = ?", (str(digest),)
    ).fetchone()
    return _record(row) if row else None


def image_names(handle: StoreHandle, image: ImageRecord) -> list[str]:
    """Return the names of an image, sorted."""
    rows = handle.database.connection.execute("SELECT name FROM name WHERE image = ? ORDER BY name", (image.id,))
    return [row[0] for row in rows]


def name_manifests(handle: StoreHandle, image: ImageRecord) -> list[Digest]:
    """Return the manifest of each name of an image, in the order of :func:`image_names`."""
    rows = handle.database.connection.execute("SELECT manifest FROM name WHERE image = ? ORDER BY name", (image.id,))
    return [Digest.parse(row[0]) for row in rows]


def image_manifests(handle: StoreHandle, image: ImageRecord) -> list[Digest]:
    """Return all manifests that an image has in the store."""
    rows = handle.database.connection.execute(
        "SELECT manifest FROM image WHERE id = ?1 UNION SELECT manifest FROM name WHERE image = ?1"
        " UNION SELECT manifest FROM origin WHERE image = ?1", (image.id,)
    )  # fmt: skip
    return [Digest.parse(row[0]) for row in rows]


def image_indexes(handle: StoreHandle, image: ImageRecord) -> list[Digest]:
    """Return the indexes that an image was pulled by."""
    rows = handle.database.connection.execute(
        "SELECT DISTINCT digest FROM origin WHERE image = ? AND digest != manifest", (image.id,)
    )
    return [Digest.parse(row[0]) for row in rows]


def image_origins(handle: StoreHandle, image: ImageRecord) -> list[str]:
    """Return what an image was pulled as, ``repository@digest`` each, sorted."""
    rows = handle.database.connection.execute(
        "SELECT repository || '@' || digest FROM origin WHERE image = ? ORDER BY 1", (image.id,)
    )
    return [row[0] for row in rows]


def image_layers(handle: StoreHandle, image: ImageRecord) -> list[LayerRecord]:
    """Return the layers of an image, bottom first."""
    return chain_layers(handle, image.id)


def find_image(handle: StoreHandle, text: str) -> ImageRecord:
    """Return the image that a user means by a name, an ID, or the unique beginning of an ID.

    A name wins over the beginning of an ID, as with docker: who names an image ``cafe`` means it. A whole ID means that
    image whatever names there are, for an archive may name its images as it likes. What is neither may be the end of a
    name: ``app:1`` finds ``registry.example/team/app:1``, as with podman.

    Raises:
        NotFound: nothing matches.
        Conflict: several IDs begin so, or several images have names that end so; the message lists them.
        InvalidReference: the text is neither a name nor an ID.
    """
    connection = handle.database.connection
    wanted = text.strip()
    error: InvalidReference | None = None
    with contextlib.suppress(InvalidReference):
        record = find_record(handle, Digest.parse(wanted if ":" in wanted else f"sha256:{wanted}"))
        if record is not None:
            return record
    try:
        for reference in possible_names(wanted):
            record = _by_reference(connection, reference)
            if record is not None:
                return record
    except InvalidReference as problem:
        error = problem
    algorithm, _, digits = wanted.rpartition(":")
    digits = digits.lower()
    if digits and not digits.strip("0123456789abcdef") and algorithm in ("", "sha256", "sha512"):
        if len(digits) < MIN_PREFIX:
            raise NotFound("image", text, hint=f"Give at least {MIN_PREFIX} digits of an ID.")
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM image WHERE digest LIKE ? OR digest LIKE ?",
            tuple(f"{name}:{digits}%" for name in ("sha256", "sha512")),
        ).fetchall()
        if len(rows) == 1:
            return _record(rows[0])
        if rows:
            listed = ", ".join(sorted(str(row[1]).split(":")[1][:12] for row in rows))
            raise Conflict(f"{text} is the beginning of {len(rows)} image IDs: {listed}", reason="ambiguous")
    elif error is not None:
        raise error
    names = _ending(wanted, [row[0] for row in connection.execute("SELECT name FROM name ORDER BY name")])
    found = {record.id: record for name in names if (record := find_name(handle, Reference.parse(name))) is not None}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise Conflict(f"{text} may mean {', '.join(names)}", reason="ambiguous", hint="Write the name in full.")
    raise NotFound("image", text, hint="List what there is with: layerfs images")


def _ending(text: str, names: Sequence[str]) -> list[str]:
    """Return the names whose end is this text, which has no registry; a digest matches none."""
    try:
        wanted = Reference.parse(text).with_default_tag()
    except InvalidReference:
        return []
    first = text.partition("/")[0]
    if wanted.digest is not None or ("/" in text and ("." in first or ":" in first or first == "localhost")):
        return []
    end = f"/{text}" if text.endswith(f":{wanted.tag}") else f"/{text}:{wanted.tag}"
    return [name for name in names if name.endswith(end)]


def possible_names(text: str) -> list[Reference]:
    """Return what a text may be the name of, the likelier first.

    Images of archives that give only a tag live below ``localhost/``, and are found without it, as with podman.

    Raises:
        InvalidReference: it is no name.
    """
    found = []
    error: InvalidReference | None = None
    for familiar in (text, f"localhost/{text}"):
        try:
            found.append(Reference.parse(familiar))
        except InvalidReference as problem:
            error = error or problem
    if not found and error is not None:
        raise error
    return found


def digest_in(text: str) -> Digest | None:
    """Return the digest of a text that is ``NAME@DIGEST``, else None."""
    with contextlib.suppress(InvalidReference):
        return next((name.digest for name in possible_names(text) if name.digest is not None), None)
    return None


def name_to_give(handle: StoreHandle, text: str) -> Reference:
    """Return the canonical name that an image gets from a user: the one by which that text finds an image, if it does.

    Raises:
        InvalidReference: it is no name, or has a digest.
    """
    Reference.parse(text)  # an ID is none, although one below localhost/ would be
    given = [name.with_default_tag() for name in possible_names(text)]
    if given[0].digest is not None:
        raise InvalidReference(f"{text} has a digest: a name for an image is a repository and a tag")
    if given[0].familiar.partition(":")[0] in ("sha256", "sha512"):
        raise InvalidReference(f"{text} would be taken for an image ID: choose another name")
    return next((name for name in given if find_name(handle, name) is not None), given[0])


def name_among(text: str, names: Sequence[str]) -> str | None:
    """Return the one of an image's canonical names that a user means by a text, or None."""
    try:
        meant = [str(name.with_default_tag()) for name in possible_names(text)]
    except InvalidReference:
        return None
    ending = _ending(text, names)
    return next((name for name in [*meant, *(ending if len(ending) == 1 else ())] if name in names), None)


def references_of(text: str, names: Sequence[str], origins: Sequence[str]) -> list[str]:
    """Return which of an image's names and origins a user means by a text; none if that means the image itself.

    With the last name of a repository go the digests that the image had from there, as with docker.

    Args:
        text: what the user wrote.
        names: of the image, canonical.
        origins: ``repository@digest`` each.
    """
    name = name_among(text, names)
    if name is not None:
        repository = name.rpartition(":")[0]
        if any(other != name and other.rpartition(":")[0] == repository for other in names):
            return [name]
        return [name, *(origin for origin in origins if origin.partition("@")[0] == repository)]
    with contextlib.suppress(InvalidReference):
        for reference in possible_names(text):
            if f"{reference.name}@{reference.digest}" in origins:
                return [f"{reference.name}@{reference.digest}"]
    return []


def remove_references(connection: sqlite3.Connection, image: ImageRecord, references: Sequence[str]) -> None:
    """Remove names and origins of an image, inside the caller's transaction."""
    for reference in references:
        repository, is_origin, digest = reference.partition("@")
        if is_origin:
            connection.execute(
                "DELETE FROM origin WHERE image = ? AND repository = ? AND digest = ?", (image.id, repository, digest)
            )
        else:
            connection.execute("DELETE FROM name WHERE name = ? AND image = ?", (reference, image.id))


def find_name(handle: StoreHandle, name: Reference) -> ImageRecord | None:
    """Return the image that a canonical name means, or None."""
    return _by_reference(handle.database.connection, name)


def merged_tree(handle: StoreHandle, image: ImageRecord) -> Tree:
    """Return the image's merged tree, made again if it is missing or damaged.

    Raises:
        IntegrityError: so is one of its layers.
        NotFound: the image was removed meanwhile.
        OSError: ENOSPC, EIO.
    """
    path = handle.layout.merged_tree(image.chain_id)
    try:
        return open_tree(path)
    except (FileNotFoundError, FormatError):
        from layerfs.store.derive import merge_stored  # noqa: PLC0415 - who only looks starts sooner

        with handle.trees_kept():
            layers = image_layers(handle, image)
            if chain_id([layer.diff_id for layer in layers]) != image.chain_id:
                raise NotFound("image", str(image.digest)) from None
            try:
                merged = merge_stored(handle, layers)
            except (FileNotFoundError, FormatError) as error:
                raise IntegrityError(f"a layer is damaged: {error}", hint="Load the image again.") from error
            if handle.database.frozen:
                return Tree(memoryview(merged))  # to look at; it cannot be kept
            write_document(path, merged, sync=handle.sync)
            return open_tree(path)


def _by_reference(connection: sqlite3.Connection, reference: Reference) -> ImageRecord | None:
    """Look a name up; a digest is that of a manifest, of an index that the image was pulled by, or of the config."""
    if reference.digest is not None:
        row = connection.execute(_BY_DIGEST, (str(reference.digest),)).fetchone()
    else:
        row = connection.execute(
            "SELECT image.id, digest, name.manifest, chain_id, loaded FROM name JOIN image ON image.id = name.image"
            " WHERE name.name = ?",
            (str(reference.with_default_tag()),),
        ).fetchone()
    return _record(row) if row else None


def _record(row: tuple[int, str, str, str, int]) -> ImageRecord:
    return ImageRecord(row[0], Digest.parse(row[1]), Digest.parse(row[2]), Digest.parse(row[3]), row[4])
