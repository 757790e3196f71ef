"""Documents: what was written is what is read, and no bytes break the parsers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from layerfs.errors import FormatError
from layerfs.formats import media_type
from layerfs.formats.digest import Digest
from layerfs.formats.docker import parse_archive_manifest
from layerfs.formats.document import parse_document, parse_timestamp
from layerfs.formats.oci import (
    ImageConfig,
    Index,
    Manifest,
    parse_layout_marker,
    parse_manifest_or_index,
)

PARSERS: list[Callable[[bytes], object]] = [
    Manifest.parse,
    Index.parse,
    ImageConfig.parse,
    parse_manifest_or_index,
    parse_archive_manifest,
    parse_layout_marker,
]

printable = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | printable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(printable, inner, max_size=4),
    max_leaves=15,
)
digest_texts = st.builds(
    lambda data, name: str(Digest.of(data, name)), st.binary(), st.sampled_from(["sha256", "sha512"])
)
#: Fields that nobody knows, which must neither disturb nor get lost.
unknown = st.dictionaries(printable.map("x-".__add__), values, max_size=3)


def with_unknown(known: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.builds(lambda one, other: {**other, **one}, known, unknown)


descriptors = with_unknown(
    st.fixed_dictionaries(
        {
            "mediaType": st.sampled_from([media_type.OCI_LAYER_GZIP, media_type.OCI_MANIFEST, "text/plain"]),
            "digest": digest_texts,
            "size": st.integers(0, 2**63 - 1),
        },
        optional={
            "annotations": st.none() | st.dictionaries(printable, printable, max_size=2),
            "urls": st.none() | st.lists(printable, max_size=2),
            "platform": st.fixed_dictionaries(
                {"os": st.just("linux"), "architecture": st.sampled_from(["arm", "amd64"])}
            ),
        },
    )
)
manifests = with_unknown(
    st.fixed_dictionaries(
        {"schemaVersion": st.just(2), "config": descriptors, "layers": st.lists(descriptors, max_size=4)},
        optional={"mediaType": st.sampled_from(sorted(media_type.MANIFEST_TYPES)), "subject": st.none() | descriptors},
    )
)
indexes = with_unknown(
    st.fixed_dictionaries(
        {"schemaVersion": st.just(2), "manifests": st.lists(descriptors, max_size=4)},
        optional={"mediaType": st.sampled_from(sorted(media_type.INDEX_TYPES))},
    )
)
configs = with_unknown(
    st.fixed_dictionaries(
        {
            "rootfs": st.fixed_dictionaries(
                {"type": st.just("layers"), "diff_ids": st.lists(digest_texts, max_size=4)}
            ),
            "os": st.just("linux"),
            "architecture": st.sampled_from(["arm", "amd64", "x86_64"]),
        },
        optional={
            "created": st.datetimes().map(lambda time: time.isoformat() + "Z"),
            "history": st.lists(
                st.fixed_dictionaries({}, optional={"created_by": printable, "empty_layer": st.booleans()}), max_size=6
            ),
            "config": st.none() | st.dictionaries(printable, values, max_size=3),
        },
    )
)


def dump(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def refuse_only(parse: Callable[[bytes], object], raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse(raw)


@given(st.dictionaries(printable, values))
def test_json_is_read_as_written(document: dict[str, object]) -> None:
    assert parse_document(dump(document), "x") == document
    assert parse_document(json.dumps(document).encode(), "x") == document


@given(manifests)
def test_manifests_are_read_as_written(document: dict[str, object]) -> None:
    parsed = Manifest.parse(dump(document))
    again = json.loads(parsed.raw)
    assert again == document
    assert parsed == parse_manifest_or_index(parsed.raw)
    read = [(layer.media_type, str(layer.digest), layer.size, dict(layer.annotations)) for layer in parsed.layers]
    assert read == [
        (layer["mediaType"], layer["digest"], layer["size"], layer.get("annotations") or {})
        for layer in again["layers"]
    ]


@given(indexes)
def test_indexes_are_read_as_written(document: dict[str, object]) -> None:
    parsed = parse_manifest_or_index(dump(document))
    assert isinstance(parsed, Index)
    assert json.loads(parsed.raw) == document
    assert [str(entry.digest) for entry in parsed.manifests] == [
        entry["digest"] for entry in json.loads(parsed.raw)["manifests"]
    ]


@given(configs)
def test_configs_are_read_as_written(document: dict[str, object]) -> None:
    parsed = ImageConfig.parse(dump(document))
    again = json.loads(parsed.raw)
    assert again == document
    assert [str(diff_id) for diff_id in parsed.diff_ids] == again["rootfs"]["diff_ids"]
    assert len(parsed.layer_history()) == len(parsed.diff_ids)
    assert parsed.config == (again.get("config") or {})


@given(st.binary(max_size=200))
@example(b"\xff")
@example(b'{"schemaVersion": 1e400}')
@example(b'{"a": "\\ud800"}')
@example(b"\xef\xbb\xbf[]")
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for parse in PARSERS:
        refuse_only(parse, raw)


@given(values | st.lists(values))
def test_any_json_is_read_or_refused(document: object) -> None:
    for parse in PARSERS:
        refuse_only(parse, dump(document))


@given(st.data(), st.one_of(manifests, indexes, configs), values)
def test_any_member_of_a_wrong_type_is_read_or_refused(
    data: st.DataObject, document: dict[str, object], value: object
) -> None:
    place: dict[str, object] | list[object] = document
    while True:
        keys: list[str | int] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        inner = place[key]  # type: ignore[index]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.booleans()):
            place = inner
            continue
        place[key] = value  # type: ignore[index]
        break
    for parse in PARSERS:
        refuse_only(parse, dump(document))


@given(st.one_of(manifests, indexes, configs).map(dump), st.integers(0, 5000), st.binary(max_size=3))
def test_any_damage_is_read_or_refused(raw: bytes, position: int, damage: bytes) -> None:
    position %= len(raw) + 1
    for parse in PARSERS:
        refuse_only(parse, raw[:position])
        refuse_only(parse, raw[:position] + damage + raw[position + len(damage) :])


@given(st.text() | st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat()))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with contextlib.suppress(FormatError):
        parse_timestamp(text)
