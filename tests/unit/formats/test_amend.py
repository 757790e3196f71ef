"""Documents of new images made of old ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerfs.errors import InvalidReference
from layerfs.formats.amend import INSTRUCTIONS, amend_settings, history_step, make_manifest, new_config, with_layers
from layerfs.formats.digest import Digest
from layerfs.formats.document import format_timestamp, parse_timestamp
from layerfs.formats.oci import Descriptor, ImageConfig, Manifest
from layerfs.formats.platform import Platform

BASE = ImageConfig.parse(new_config(Platform("linux", "arm64", "v8")))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ('CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}),
        ("cmd run it", {"Cmd": ["/bin/sh", "-c", "run it"]}),
        ("ENV A=1 B='two words'", {"Env": ["PATH=/bin", "A=1", "B=two words"]}),
        ("ENV PATH /sbin", {"Env": ["PATH=/sbin"]}),
        ("ENV=A=1", {"Env": ["PATH=/bin", "A=1"]}),
        ("LABEL a=b", {"Labels": {"old": "1", "a": "b"}}),
        ("EXPOSE 80 53/udp", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ('VOLUME ["/a", "/b"]', {"Volumes": {"/a": {}, "/b": {}}}),
        ("VOLUME /a", {"Volumes": {"/a": {}}}),
        ("USER app", {"User": "app"}),
        ("WORKDIR /srv", {"WorkingDir": "/srv"}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
        ("ONBUILD RUN x", {"OnBuild": ["RUN x"]}),
    ],
)
def test_an_instruction_changes_its_setting(instruction: str, expected: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"Env": ["PATH=/bin"], "Labels": {"old": "1"}}
    before = dict(settings)
    amend_settings(settings, instruction)
    assert settings == before | expected


def test_an_entrypoint_takes_the_old_command_away() -> None:
    settings: dict[str, Any] = {"Cmd": ["old"]}
    amend_settings(settings, 'ENTRYPOINT ["new"]')
    assert settings == {"Entrypoint": ["new"]}


@pytest.mark.parametrize("text", ["RUN x", "", "CMD", "ENV A", "LABEL a=b c", "ENV 'open", "COPY a b", *INSTRUCTIONS])
def test_what_changes_no_setting_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        amend_settings({}, text)


def test_unknown_members_survive_and_those_of_the_container_go() -> None:
    raw = json.dumps(json.loads(BASE.raw) | {"x-unknown": [1], "container_config": {}, "config": {"Odd": 1}}).encode()
    diff_id = Digest.of(b"layer")
    step = history_step(10**18, "made", author="me", comment="why")
    made = with_layers(ImageConfig.parse(raw), [diff_id], [step], created=10**18, author="me", changes=["USER a"])
    document = json.loads(made.raw)
    assert document["x-unknown"] == [1]
    assert "container_config" not in document
    assert document["config"] == {"Odd": 1, "User": "a"}
    assert made.diff_ids == (diff_id,)
    assert (made.created, made.author, made.history[0].comment) == (10**18, "me", "why")
    assert made.platform == BASE.platform


def test_a_manifest_is_read_back() -> None:
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(b"x"), 1)
    digest, raw = make_manifest(BASE, [blob], {"a": "b"})
    found = Manifest.parse(raw)
    found.check_image()
    assert (found.digest, found.layers, found.annotations) == (digest, (blob,), {"a": "b"})


@pytest.mark.parametrize("ns", [0, 1, 10**18 + 500_000_000, -1, 1_700_000_000_123_456_789])
def test_times_are_read_back(ns: int) -> None:
    assert parse_timestamp(format_timestamp(ns)) == ns
