"""The SQLite schema of a store, commented because queries are written from it.

Digests are text, ``algorithm:hex``. Sizes and offsets are bytes, times nanoseconds since the epoch. Numbers of layers
and images are never given twice, for whoever has read one may use it when its row is gone.
"""

from __future__ import annotations

__all__ = ["SCHEMA", "SCHEMA_VERSION"]

#: PRAGMA user_version of this schema.
SCHEMA_VERSION = 5

SCHEMA = """
CREATE TABLE layer (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    diff_id    TEXT    NOT NULL UNIQUE,
    tar_size   INTEGER NOT NULL,  -- bytes of the uncompressed tar, which diff_id digests
    file_size  INTEGER NOT NULL,  -- bytes of layer.tar: tar_size, and sparse files spread out behind it
    tar_mtime  INTEGER NOT NULL,  -- st_mtime_ns of layer.tar as committed: the cheap check for tampering
    tree_size  INTEGER NOT NULL,
    tree_mtime INTEGER NOT NULL,
    entries    INTEGER NOT NULL,  -- members of the tar
    created    INTEGER NOT NULL
) STRICT;

-- A hole of a layer tar: these bytes lie in another tar (or elsewhere in the same one).
CREATE TABLE extent (
    layer        INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    offset       INTEGER NOT NULL,  -- multiple of 512, below tar_size
    size         INTEGER NOT NULL,  -- at least 4096
    donor        INTEGER NOT NULL REFERENCES layer (id),
    donor_offset INTEGER NOT NULL,  -- the donor really holds the bytes: no extent of its own covers them
    PRIMARY KEY (layer, offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX extent_donor ON extent (donor, donor_offset);

-- Files of 4096 bytes and more whose bytes a layer tar really holds: the offer to later layers.
CREATE TABLE content (
    layer  INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    offset INTEGER NOT NULL,
    size   INTEGER NOT NULL,
    mark   INTEGER NOT NULL,  -- CRC-32 of the first 512 bytes and of the last block: finds candidates to compare with
    PRIMARY KEY (layer, offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX content_mark ON content (size, mark);

-- A blob that decompresses to a layer; what a manifest names.
CREATE TABLE compressed (
    digest TEXT    NOT NULL,
    layer  INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    size   INTEGER NOT NULL,
    PRIMARY KEY (digest, layer)
) STRICT, WITHOUT ROWID;
CREATE INDEX compressed_layer ON compressed (layer);

CREATE TABLE image (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    digest   TEXT    NOT NULL UNIQUE,  -- of the config: the image ID
    manifest TEXT    NOT NULL,         -- digest of the manifest it came with last
    chain_id TEXT    NOT NULL,         -- the merged tree; empty chain: digest of nothing
    loaded   INTEGER NOT NULL
) STRICT;
CREATE INDEX image_chain ON image (chain_id);

CREATE TABLE image_layer (
    image    INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,  -- 0 is the lowest
    layer    INTEGER NOT NULL REFERENCES layer (id),
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layer_layer ON image_layer (layer);

-- One config, and so one image, may have come with several manifests: of other compressions, say. All are kept that
-- something here names.
CREATE TABLE name (
    name     TEXT    PRIMARY KEY,  -- canonical reference with a tag
    image    INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    manifest TEXT    NOT NULL      -- digest of the manifest that the name was given with
) STRICT, WITHOUT ROWID;
CREATE INDEX name_image ON name (image);

-- Where an image was pulled from: what NAME@DIGEST means beside the manifest that the image came with.
CREATE TABLE origin (
    image      INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    repository TEXT    NOT NULL,  -- canonical, without a tag
    digest     TEXT    NOT NULL,  -- of what the repository answered: its manifest, or an index that lists that
    manifest   TEXT    NOT NULL,  -- digest of the manifest
    asked      INTEGER NOT NULL,  -- 1 if it was pulled by that digest, which is a name then, and keeps the image
    PRIMARY KEY (image, repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX origin_digest ON origin (digest);

-- A container: a writable layer on top of an image.
CREATE TABLE snapshot (
    id       TEXT    PRIMARY KEY,  -- 64 hex digits, also its directory
    name     TEXT    NOT NULL UNIQUE,
    image    INTEGER NOT NULL REFERENCES image (id),
    manifest TEXT    NOT NULL,     -- of the image, by which it was made
    created  INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshot_image ON snapshot (image);

-- Keeps a layer from gc while a load (its ingest directory is the owner) has not yet made an image of it.
CREATE TABLE lease (
    owner TEXT    NOT NULL,
    layer INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    PRIMARY KEY (owner, layer)
) STRICT, WITHOUT ROWID;
"""
