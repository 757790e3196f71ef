"""Strict JSON: what is refused, and that every getter names the member that is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from layerfs.errors import FormatError, LimitExceeded
from layerfs.formats.digest import Digest
from layerfs.formats.document import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_DOCUMENT_SIZE,
    JsonObject,
    json_objects,
    parse_array,
    parse_document,
    parse_timestamp,
)


def test_keeps_order_and_unknown_members() -> None:
    assert list(parse_document(b' {"b": 1, "a": [true, null, 1.5, "x"]}\n', "x").items()) == [
        ("b", 1),
        ("a", [True, None, 1.5, "x"]),
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": 01}', "not JSON"),
        (b'{"a": "\n"}', "not JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'\xff\xfe{\x00}\x00"', "not UTF-8 at byte 0"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b"{}\x00", "not JSON"),
        (b"[]", "must be an object, not an array"),
        (b"null", "must be an object, not null"),
        (b"1", "must be an object, not an integer"),
        (b"1.5", "must be an object, not a fraction"),
        (b'"x"', "must be an object, not a string"),
        (b"true", "must be an object, not a boolean"),
        (b'{"a": 1, "a": 1}', "key 'a' is given twice"),
        (b'{"a": 1, "\\u0061": 2}', "key 'a' is given twice"),
        (b'{"x": [{"a": 1, "b": 2, "a": 3}]}', "key 'a' is given twice"),
        (b'{"\\u001b[31m": 1, "\\u001b[31m": 1}', "key '\\x1b[31m' is given twice"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": Infinity}', "Infinity is not a JSON value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\uDC00x": 1}', "half a surrogate pair"),
    ],
)
def test_refuses(raw: bytes, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_document(raw, "manifest")
    assert caught.value.where == "manifest"
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 9223372036854775808}', "more than 64 bits"),
        (b'{"a": -9223372036854775809}', "more than 64 bits"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "more than 64 bits"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 400 + b".0}", "too large"),
        (b"[" * 100_000, "levels deep"),
        (b'{"a":' * 100_000, "levels deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "levels deep"),
        (b"[" + b"{}," * MAX_CONTAINERS + b"{}]", "objects and arrays"),
        (b" " * (MAX_DOCUMENT_SIZE + 1), "4194305 bytes, at most 4194304"),
    ],
)
def test_limits(raw: bytes, message: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        parse_document(raw, "manifest")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_fifty_megabytes_are_refused() -> None:
    raw = bytes(50_000_000)
    with pytest.raises(LimitExceeded):
        parse_document(raw, "manifest")


def test_the_limits_themselves_are_allowed() -> None:
    inner = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert "a" in parse_document(b'{"a":' + inner + b"}", "x")
    assert parse_document(b'{"a": 9223372036854775807, "b": -9223372036854775808}', "x")["a"] == 2**63 - 1
    assert parse_document(b"{}".ljust(MAX_DOCUMENT_SIZE), "x") == {}
    assert parse_document(b'{"a":1}', "x", limit=7) == {"a": 1}
    with pytest.raises(LimitExceeded):
        parse_document(b'{"a":1}', "x", limit=6)


def test_brackets_in_strings_are_no_nesting() -> None:
    text = '\\"' + "[{" * 1000 + "\\\\"
    assert parse_document(f'{{"a": "{text}"}}'.encode(), "x") == {"a": '"' + "[{" * 1000 + "\\"}


def test_whole_surrogate_pairs_are_text() -> None:
    assert parse_document(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    "raw", [b'"' + b'\\"' * 2_000_000, b'"' * 4_000_000, b'{"a": "' + b"\\" * 4_000_001, b"]" * 1_000_000]
)
def test_strings_that_never_close_cost_one_pass(raw: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(FormatError):
        parse_document(raw, "x")
    assert time.process_time() - begin < 30  # a pass takes well under one second, a quadratic one hours


def test_a_caller_deep_in_its_stack_gets_a_limit_not_a_crash() -> None:
    raw = b'{"a":' + b"[" * 60 + b"]" * 60 + b"}"

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
        else:
            parse_document(raw, "x")

    outcomes = set()
    for levels in range(sys.getrecursionlimit()):
        try:
            descend(levels)
            outcomes.add("parsed")
        except LimitExceeded:
            outcomes.add("refused")
        except RecursionError:
            # The stack ended in this test or in the shape check, before the parser was reached.
            break
    assert "parsed" in outcomes


def test_parse_array() -> None:
    assert parse_array(b"[1, {}]", "x") == [1, {}]
    with pytest.raises(FormatError, match="must be an array, not an object"):
        parse_array(b"{}", "x")
    with pytest.raises(FormatError, match="given twice"):
        parse_array(b'[{"a":1,"a":1}]', "x")


HEX = "0" * 64
TOP = JsonObject(
    {
        "text": "x",
        "size": 5,
        "zero": 0,
        "negative": -1,
        "fraction": 1.0,
        "true": True,
        "null": None,
        "digest": f"sha256:{HEX}",
        "bad digest": "sha256:0",
        "texts": ["a", "b"],
        "mixed": ["a", 1],
        "nulls": ["a", None],
        "map": {"k": "v"},
        "bad map": {"k": 1},
        "objects": [{"a": 1}, {"b": {"c": 7}}],
        "bad objects": [{}, 3],
        "null objects": [{}, None],
        "time": "1970-01-01T00:00:01Z",
        "bad time": "yesterday",
    }
)


@pytest.mark.parametrize(
    ("get", "expected"),
    [
        (lambda: TOP.text("text"), "x"),
        (lambda: TOP.optional_text("none"), None),
        (lambda: TOP.optional_text("null"), None),
        (lambda: TOP.size("size"), 5),
        (lambda: TOP.size("zero"), 0),
        (lambda: TOP.optional_integer("negative"), -1),
        (lambda: TOP.optional_integer("null"), None),
        (lambda: TOP.flag("true"), True),
        (lambda: TOP.flag("null"), False),
        (lambda: TOP.digest("digest"), Digest("sha256", HEX)),
        (lambda: TOP.digests("none"), ()),
        (lambda: TOP.texts("texts"), ("a", "b")),
        (lambda: TOP.texts("null"), ()),
        (lambda: TOP.text_map("map"), {"k": "v"}),
        (lambda: TOP.text_map("null"), {}),
        (lambda: TOP.optional_child("null"), None),
        (lambda: TOP.child("map").place("k"), "map.k"),
        (lambda: TOP.children("objects")[1].child("b").place("c"), "objects[1].b.c"),
        (lambda: TOP.children("null"), ()),
        (lambda: TOP.timestamp("time"), 10**9),
        (lambda: TOP.timestamp("null"), None),
        (lambda: TOP.has("text"), True),
        (lambda: TOP.has("null"), False),
    ],
)
def test_getters(get: Callable[[], object], expected: object) -> None:
    assert get() == expected


@pytest.mark.parametrize(
    ("get", "where", "message"),
    [
        (lambda: TOP.text("none"), "none", "is missing"),
        (lambda: TOP.text("null"), "null", "is missing"),
        (lambda: TOP.text("size"), "size", "must be a string, not an integer"),
        (lambda: TOP.size("none"), "none", "is missing"),
        (lambda: TOP.size("negative"), "negative", "must not be negative: -1"),
        (lambda: TOP.size("true"), "true", "must be an integer, not a boolean"),
        (lambda: TOP.size("fraction"), "fraction", "must be an integer, not a fraction"),
        (lambda: TOP.size("text"), "text", "must be an integer, not a string"),
        (lambda: TOP.flag("zero"), "zero", "must be a boolean, not an integer"),
        (lambda: TOP.digest("bad digest"), "bad digest", "64 hex digits, not 1"),
        (lambda: TOP.digests("texts"), "texts[0]", "not a digest: 'a'"),
        (lambda: TOP.texts("text"), "text", "must be an array, not a string"),
        (lambda: TOP.texts("mixed"), "mixed[1]", "must be a string, not an integer"),
        (lambda: TOP.texts("nulls"), "nulls[1]", "is missing"),
        (lambda: TOP.text_map("bad map"), "bad map['k']", "must be a string, not an integer"),
        (lambda: TOP.text_map("texts"), "texts", "must be an object, not an array"),
        (lambda: TOP.child("null"), "null", "is missing"),
        (lambda: TOP.children("map"), "map", "must be an array, not an object"),
        (lambda: TOP.children("bad objects"), "bad objects[1]", "must be an object, not an integer"),
        (lambda: TOP.children("null objects"), "null objects[1]", "must be an object, not null"),
        (lambda: TOP.children("objects")[1].child("b").text("c"), "objects[1].b.c", "must be a string"),
        (lambda: TOP.timestamp("bad time"), "bad time", "not a date and time: 'yesterday'"),
        (lambda: json_objects([{}, 1]), "[1]", "must be an object"),
    ],
)
def test_errors_say_where(get: Callable[[], object], where: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        get()
    assert caught.value.where == where
    assert message in str(caught.value)


def test_hostile_names_write_no_lines_of_their_own() -> None:
    with pytest.raises(FormatError) as caught:
        JsonObject({"annotations": {"a\nlayerfs: all is well": 1}}).text_map("annotations")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T00:00:00.1Z", 100_000_000),
        ("1970-01-01T00:00:00.1234567899Z", 123_456_789),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("1970-01-01T01:30:00+01:30", 0),
        ("1969-12-31T19:00:00-05:00", 0),
        ("2026-11-02T03:04:05Z", 1_793_588_645_000_000_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000_000),
        ("2262-04-11T23:47:16.854775807Z", 2**63 - 1),
        ("2262-04-11T23:47:16.854775808Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59-23:59", None),
    ],
)
def test_timestamps(text: str, expected: int | None) -> None:
    assert parse_timestamp(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-02",
        "2026-11-02T03:04:05",
        "2026-11-02 03:04:05Z",
        "2026-11-02T03:04:05z",
        "2026-11-02T03:04:05Z\n",
        "2026-11-02T03:04:05.Z",
        "2026-13-02T03:04:05Z",
        "2026-02-29T03:04:05Z",
        "2026-11-02T24:00:00Z",
        "2026-11-02T03:04:60Z",
        "0000-01-01T00:00:00Z",
        "2026-11-02T03:04:05+24:00",
        "2026-11-02T03:04:05+00:60",
        "٢٠٢٦-11-02T03:04:05Z",
    ],
)
def test_timestamps_refused(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_timestamp(text, where="created")
    assert caught.value.where == "created"
