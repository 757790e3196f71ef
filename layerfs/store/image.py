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
from layerfs.store.database import stored_digest
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
    "names_of_manifest",
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


def name_manifests(handle: StoreHandle, image: ImageRecord) -> dict[str, Digest]:
    """Return the manifest of each name of an image, sorted by name."""
    rows = handle.database.connection.execute(
        "SELECT name, manifest FROM name WHERE image = ? ORDER BY name", (image.id,)
    )
    return {row[0]: stored_digest(row[1]) for row in rows.fetchall()}


def names_of_manifest(handle: StoreHandle, image: ImageRecord) -> list[str]:
    """Return the names of an image that mean the manifest of this record, sorted."""
    return [name for name, manifest in name_manifests(handle, image).items() if manifest == image.manifest]


def image_manifests(handle: StoreHandle, image: ImageRecord) -> list[Digest]:
    """Return all manifests that an image has in the store."""
    rows = handle.database.connection.execute(
        "SELECT manifest FROM image WHERE id = ?1 UNION SELECT manifest FROM name WHERE image = ?1"
        " UNION SELECT manifest FROM origin WHERE image = ?1"
        " UNION SELECT manifest FROM snapshot WHERE image = ?1", (image.id,)
    )  # fmt: skip
    return [stored_digest(row[0]) for row in rows]


def image_indexes(handle: StoreHandle, image: ImageRecord) -> list[Digest]:
    """Return the indexes that an image was pulled by."""
    rows = handle.database.connection.execute(
        "SELECT DISTINCT digest FROM origin WHERE image = ? AND digest != manifest", (image.id,)
    )
    return [stored_digest(row[0]) for row in rows]


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
    is_short = False
    if digits and not digits.strip("0123456789abcdef") and algorithm in ("", "sha256", "sha512"):
        is_short = len(digits) < MIN_PREFIX
        rows = [] if is_short else connection.execute(
            f"SELECT {_COLUMNS} FROM image WHERE digest LIKE ? OR digest LIKE ?",
            tuple(f"{name}:{digits}%" for name in ("sha256", "sha512")),
        ).fetchall()  # fmt: skip
        if len(rows) == 1:
            return _record(rows[0])
        if rows:
            listed = ", ".join(sorted(str(row[1]).split(":")[1][:12] for row in rows))
            raise Conflict(f"{text} is the beginning of {len(rows)} image IDs: {listed}", reason="ambiguous")
    elif error is not None:
        raise error
    names = _ending(wanted, [row[0] for row in connection.execute("SELECT name FROM name ORDER BY name").fetchall()])
    found = [record for name in names if (record := find_name(handle, Reference.parse(name))) is not None]
    if len({(record.id, record.manifest) for record in found}) == 1:
        return found[0]
    if found:
        raise Conflict(f"{text} may mean {', '.join(names)}", reason="ambiguous", hint="Write the name in full.")
    if is_short:
        raise NotFound("image", text, hint=f"Give at least {MIN_PREFIX} digits of an ID.")
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


def name_among(text: str, names: Sequence[str], *, endings: bool = True) -> str | None:
    """Return the one of an image's canonical names that a user means by a text, or None.

    ``endings`` says whether it may be the end of one.
    """
    try:
        meant = [str(name.with_default_tag()) for name in possible_names(text)]
    except InvalidReference:
        return None
    ending = _ending(text, names) if endings else []
    return next((name for name in [*meant, *(ending if len(ending) == 1 else ())] if name in names), None)


def references_of(handle: StoreHandle, image: ImageRecord, text: str) -> list[str]:
    """Return which names of an image, and origins as ``repository@digest``, go when a user removes a text.

    With a tag goes what is only known from pulling it. Nothing goes, if the text means the image itself.

    Args:
        handle: the store.
        image: what the text was found to mean.
        text: what the user wrote.

    Raises:
        NotFound, Conflict: the image was found by a digest or by the end of a name, and that is not the name of one.
    """
    names = name_manifests(handle, image)
    rows = handle.database.connection.execute(
        "SELECT repository, digest, manifest, asked FROM origin WHERE image = ?", (image.id,)
    ).fetchall()
    is_id = _is_id(text, image)
    name = name_among(text, list(names), endings=not is_id)
    if name is not None:
        repository, manifest = name.rpartition(":")[0], names[name]
        shared = any(
            other != name and other.rpartition(":")[0] == repository and names[other] == manifest for other in names
        )
        return [name, *(
            f"{row[0]}@{row[1]}" for row in rows
            if not row[3] and not shared and (row[0], row[2]) == (repository, str(manifest))
        )]  # fmt: skip
    asked = digest_in(text)
    if asked is None:
        if is_id:
            return []
        fitting = _ending(text, list(names))
        if not fitting:
            raise NotFound("image", text, hint="Somebody else has just removed it.")
        raise Conflict(f"{text} may mean {', '.join(fitting)}", reason="ambiguous", hint="Write the name in full.")
    for reference in possible_names(text):
        if any((row[0], row[1]) == (reference.name, str(asked)) for row in rows):
            return [f"{reference.name}@{asked}"]
        tags = [name for name in names if name.rpartition(":")[0] == reference.name and names[name] == asked]
        if tags:
            raise Conflict(
                f"{text} is what {' and '.join(tags)} {'means' if len(tags) == 1 else 'mean'}", reason="in-use",
                hint=f"Remove that: layerfs rmi {' '.join(tags)}",
            )  # fmt: skip
    raise NotFound("image", text, hint="List what there is with: layerfs images --digests")


def _is_id(text: str, image: ImageRecord) -> bool:
    """Whether a text is the ID of an image, or the beginning of it."""
    algorithm, _, digits = text.strip().rpartition(":")
    digits = digits.lower()
    return (
        algorithm in ("", image.digest.algorithm) and len(digits) >= MIN_PREFIX and image.digest.hex.startswith(digits)
    )


def remove_references(handle: StoreHandle, image: ImageRecord, text: str) -> tuple[list[str], bool]:
    """Remove what a user means by a text from an image that others still name, inside the caller's transaction.

    Returns:
        What goes, the name itself first; and whether it went. If not, the image goes with it: nothing else names it.

    Raises:
        As :func:`references_of`.
    """
    connection = handle.database.connection
    going = references_of(handle, image, text)
    asked = connection.execute(
        "SELECT repository || '@' || digest FROM origin WHERE image = ? AND asked", (image.id,)
    ).fetchall()
    left = {*image_names(handle, image), *(row[0] for row in asked)} - {*going}
    if not going or not left:
        return going, False
    for reference in going:
        repository, is_origin, digest = reference.partition("@")
        if is_origin:
            connection.execute(
                "DELETE FROM origin WHERE image = ? AND repository = ? AND digest = ?", (image.id, repository, digest)
            )
        else:
            connection.execute("DELETE FROM name WHERE name = ? AND image = ?", (reference, image.id))
    return going, True


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
    return ImageRecord(row[0], stored_digest(row[1]), stored_digest(row[2]), stored_digest(row[3]), row[4])
