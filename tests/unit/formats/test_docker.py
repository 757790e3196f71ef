"""manifest.json of docker archives."""

from __future__ import annotations

import json

import pytest

from layerfs.errors import FormatError, LimitExceeded, UnsafePath
from layerfs.formats.docker import ArchiveImage, parse_archive_manifest


def archive(**more: object) -> bytes:
    return json.dumps(
        [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["x/layer.tar", "y/layer.tar"], **more}]
    ).encode()


def test_old_and_new_archives() -> None:
    raw = json.dumps(
        [
            {"Config": "c.json", "RepoTags": ["a:1", "a:2"], "Layers": ["x/layer.tar", "./y//layer.tar"]},
            {
                "Config": "blobs/sha256/aa",
                "RepoTags": None,
                "Layers": ["blobs/sha256/bb"],
                "Parent": "z",
                "LayerSources": {"sha256:bb": {"mediaType": "x", "size": 1}},
            },
            {"Config": "empty.json", "Layers": None},
        ]
    ).encode()
    assert parse_archive_manifest(raw) == (
        ArchiveImage("c.json", ("a:1", "a:2"), ("x/layer.tar", "y/layer.tar")),
        ArchiveImage("blobs/sha256/aa", (), ("blobs/sha256/bb",)),
        ArchiveImage("empty.json", (), ()),
    )


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "manifest.json"),
        (b"{}", "manifest.json"),
        (b"[]", "manifest.json"),
        (b"[1]", "[0]"),
        (b"[{}]", "[0].Config"),
        (archive(Config=None), "[0].Config"),
        (archive(Config=1), "[0].Config"),
        (archive(Layers="x"), "[0].Layers"),
        (archive(Layers=["x", 1]), "[0].Layers[1]"),
        (archive(RepoTags="a:1"), "[0].RepoTags"),
        (archive(RepoTags=[None]), "[0].RepoTags[0]"),
        (b'[{"Config": "a", "Config": "b"}]', "manifest.json"),
    ],
)
def test_refuses(raw: bytes, where: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_archive_manifest(raw)
    assert caught.value.where == where


@pytest.mark.parametrize("path", ["", ".", "./", "//", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\0b"])
def test_unsafe_paths(path: str) -> None:
    with pytest.raises(UnsafePath) as caught:
        parse_archive_manifest(archive(Config=path))
    assert caught.value.where == "[0].Config"
    with pytest.raises(UnsafePath) as caught:
        parse_archive_manifest(archive(Layers=["ok", path]))
    assert caught.value.where == "[0].Layers[1]"


@pytest.mark.parametrize("path", ["..a/b", "a..", "...", "a b", "\u00e9/layer.tar", "a\\..\\b"])
def test_odd_paths_are_paths(path: str) -> None:
    assert parse_archive_manifest(archive(Config=path))[0].config == path


def test_limits() -> None:
    with pytest.raises(LimitExceeded):
        parse_archive_manifest(b"[" * 1000)
