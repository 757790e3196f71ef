"""Image sources: the grammar of every transport."""

from __future__ import annotations

import pytest

from layerfs.errors import InvalidReference
from layerfs.formats.transport import ImageSource, parse_source

LATEST = "docker.io/library/a:latest"
SHA256 = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ImageSource("docker", "", LATEST)),
        ("docker://a", ImageSource("docker", "", LATEST)),
        ("docker:dind", ImageSource("docker", "", "docker.io/library/docker:dind")),
        ("localhost:5000/a:1", ImageSource("docker", "", "localhost:5000/a:1")),
        (f"docker://a@{SHA256}", ImageSource("docker", "", f"docker.io/library/a@{SHA256}")),
        ("docker-daemon:a", ImageSource("docker-daemon", "", LATEST)),
        ("containers-storage:a", ImageSource("containers-storage", "", LATEST)),
        (
            "containers-storage:[overlay@/var+/run:x=y]a",
            ImageSource("containers-storage", "[overlay@/var+/run:x=y]", LATEST),
        ),
        (
            "containers-storage:[/var][::1]:5000/a:1",
            ImageSource("containers-storage", "[/var]", "[::1]:5000/a:1"),
        ),
        ("docker-archive:/x.tar", ImageSource("docker-archive", "/x.tar")),
        ("docker-archive:x.tar:a", ImageSource("docker-archive", "x.tar", LATEST)),
        ("docker-archive:x.tar:r.io:1/a:2", ImageSource("docker-archive", "x.tar", "r.io:1/a:2")),
        ("docker-archive:x.tar:@3", ImageSource("docker-archive", "x.tar", None, 3)),
        ("oci-archive:/dev/stdin", ImageSource("oci-archive", "/dev/stdin")),
        ("oci-archive:x.tar:v1", ImageSource("oci-archive", "x.tar", "v1")),
        ("oci:dir", ImageSource("oci", "dir")),
        ("oci:../dir:latest", ImageSource("oci", "../dir", "latest")),
        ("oci:dir:ghcr.io/Org/X:1", ImageSource("oci", "dir", "ghcr.io/Org/X:1")),
        ("oci:dir:@0", ImageSource("oci", "dir", None, 0)),
        ("oci:my images:x", ImageSource("oci", "my images", "x")),
        ("dir:/a:b", ImageSource("dir", "/a:b")),
        ("oci-archive:@", ImageSource("oci-archive", "@")),
    ],
)
def test_parse(text: str, expected: ImageSource) -> None:
    source = parse_source(text)
    assert source == expected
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must not be empty"),
        ("/tmp/x.tar", "a path needs a transport"),
        ("./x.tar", "a path needs a transport"),
        ("../x", "a path needs a transport"),
        ("https://x/y", "unknown transport 'https'"),
        ("ostree://x", "unknown transport 'ostree'"),
        ("docker://", "must not be empty"),
        ("docker-daemon:", "must not be empty"),
        ("docker-archive:", "path after docker-archive: is empty"),
        ("docker-archive::a", "path after docker-archive: is empty"),
        ("docker-archive:x:", "must not be empty"),
        ("docker-archive:x:A", "must be lower case"),
        (f"docker-archive:x:a@{SHA256}", "does not record digests"),
        ("docker-archive:x:@", "not a position"),
        ("docker-archive:x:@-1", "not a position"),
        ("docker-archive:x:@1x", "not a position"),
        ("docker-archive:x:@٣", "not a position"),
        ("docker-archive:x:@1234567", "not a position"),
        ("oci:", "path after oci: is empty"),
        ("oci::x", "path after oci: is empty"),
        ("oci:x:", "not the name of an image"),
        ("oci:x:a b", "not the name of an image"),
        ("oci:x:a\n", "not the name of an image"),
        ("oci:x\0y", "NUL"),
        ("dir:", "path after dir: is empty"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_source(text)
    assert message in str(caught.value)
