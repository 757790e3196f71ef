"""Strict JSON for documents that come from outside, and typed access to their members.

JSON as the parsers of the field read it has holes: keys given twice, numbers that are not numbers, nesting that ends
the process. All of these are refused here, once, so that two programs never see two different images in one document.
The one invariant: whatever the bytes, only :class:`~layerfs.errors.FormatError` and its children come out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn, TypeVar

from layerfs.errors import FormatError, InvalidReference, LimitExceeded
from layerfs.formats.digest import Digest

__all__ = [
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_DOCUMENT_SIZE",
    "MAX_INTEGER",
    "JsonObject",
    "format_timestamp",
    "json_objects",
    "parse_array",
    "parse_document",
    "parse_timestamp",
]

_T = TypeVar("_T")

#: Bytes. The size that registries must accept for a manifest, and that clients of the field refuse to pass.
MAX_DOCUMENT_SIZE = 4 * 1024 * 1024
#: Levels of objects and arrays. Real image documents stay below 10; Python's own limit depends on the caller's stack.
MAX_DEPTH = 64
#: Objects and arrays in one document: 4 MiB of ``{},`` would otherwise become 100 MB of Python objects.
MAX_CONTAINERS = 100_000
#: Sizes are signed 64-bit integers in every other implementation and in the store's database.
MAX_INTEGER = 2**63 - 1

#: An escaped character, which can only be a quote inside a string; or a quote or bracket. There is no expression for
#: a whole string: on a million escapes it would keep a million places to return to.
_ESCAPE_QUOTE_OR_BRACKET = re.compile(rb"\\.|[\"\[{\]}]", re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
#: A sign and the 19 digits of 2**63 - 1. Longer digit strings are refused before the quadratic conversion sees them.
_MAX_INTEGER_TEXT = 20
_UTF8_BOM = b"\xef\xbb\xbf"

_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,32}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _check_shape(raw: bytes, what: str) -> None:
    """Refuse nesting and numbers of containers that would exhaust stack or memory, before the parser runs."""
    depth = opened = 0
    in_string = False
    for match in _ESCAPE_QUOTE_OR_BRACKET.finditer(raw):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif in_string:
            continue
        elif token in {b"[", b"{"}:
            depth += 1
            opened += 1
            if depth > MAX_DEPTH:
                raise LimitExceeded(f"nested more than {MAX_DEPTH} levels deep", where=what)
            if opened > MAX_CONTAINERS:
                raise LimitExceeded(f"more than {MAX_CONTAINERS} objects and arrays", where=what)
        elif token in {b"]", b"}"}:
            depth -= 1


class _StrictHooks:
    """What the JSON parser asks about members and numbers; each answer is a value or a refusal."""

    def __init__(self, what: str) -> None:
        self.what = what

    def members(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise FormatError(f"key {key!r:.80} is given twice in one object", where=self.what)
                seen.add(key)
        return members

    def constant(self, text: str) -> NoReturn:
        raise FormatError(f"{text} is not a JSON value", where=self.what)

    def integer(self, text: str) -> int:
        if len(text) > _MAX_INTEGER_TEXT or not -MAX_INTEGER - 1 <= (number := int(text)) <= MAX_INTEGER:
            raise LimitExceeded(f"integer {text[:40]!r} needs more than 64 bits", where=self.what)
        return number

    def fraction(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise LimitExceeded(f"number {text!r:.40} is too large", where=self.what)
        return number


def _parse_strictly(raw: bytes, what: str, limit: int) -> object:
    """Parse JSON bytes; see :func:`parse_document` for what is refused."""
    if len(raw) > limit:
        raise LimitExceeded(f"{len(raw)} bytes, at most {limit} are read", where=what)
    if raw.startswith(_UTF8_BOM):
        raise FormatError("begins with a byte order mark", where=what)
    _check_shape(raw, what)
    hooks = _StrictHooks(what)
    try:
        value: object = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=hooks.members,
            parse_constant=hooks.constant,
            parse_int=hooks.integer,
            parse_float=hooks.fraction,
        )
        if _SURROGATE_ESCAPE.search(raw):
            # Half a surrogate pair is a string that can be neither stored nor printed.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 at byte {error.start}", where=what) from error
    except UnicodeEncodeError as error:
        raise FormatError("a string holds half a surrogate pair", where=what) from error
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg} at character {error.pos}", where=what) from error
    except RecursionError as error:
        # MAX_DEPTH is far below the interpreter's limit, but the caller may already stand deep.
        raise LimitExceeded("nested too deep", where=what) from error
    return value


def parse_document(raw: bytes, what: str, limit: int = MAX_DOCUMENT_SIZE) -> dict[str, object]:
    """Parse a JSON document whose top is an object.

    Args:
        raw: the bytes as received.
        what: the document's name for errors, such as ``manifest``.
        limit: largest size in bytes.

    Returns:
        The members, unknown ones included, in the order of the document.

    Raises:
        FormatError: not UTF-8, a byte order mark, not JSON, a key given twice in one object, NaN or Infinity, half a
            surrogate pair, or a top that is no object. ``where`` is ``what``.
        LimitExceeded: more than ``limit`` bytes, MAX_DEPTH levels, MAX_CONTAINERS objects and arrays, an integer of
            more than 64 bits, or a number beyond the largest float.

    Source: RFC 8259; OCI image-spec v1.1 "canonicalization" leaves the bytes alone, so duplicates are ours to refuse.
    """
    value = _parse_strictly(raw, what, limit)
    if not isinstance(value, dict):
        raise FormatError(f"must be an object, not {_name_of(value)}", where=what)
    return value


def parse_array(raw: bytes, what: str, limit: int = MAX_DOCUMENT_SIZE) -> list[object]:
    """Parse a JSON document whose top is an array.

    Args:
        raw: the bytes as received.
        what: the document's name for errors.
        limit: largest size in bytes.

    Raises:
        FormatError: as :func:`parse_document`, and for a top that is no array.
        LimitExceeded: as :func:`parse_document`.
    """
    value = _parse_strictly(raw, what, limit)
    if not isinstance(value, list):
        raise FormatError(f"must be an array, not {_name_of(value)}", where=what)
    return value


def _name_of(value: object) -> str:
    """Return the JSON name of a value's type, with its article."""
    # bool is a subclass of int, so it has to come first.
    for kind, name in (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a fraction"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
    ):
        if isinstance(value, kind):
            return name
    return "null"


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object together with its place in the document.

    Every getter raises :class:`~layerfs.errors.FormatError` whose ``where`` is the full path of the member, such as
    ``layers[3].digest``. A member that is ``null`` counts as absent, because Go writes empty lists and maps so.

    Attributes:
        members: the members as parsed, unknown ones included.
        where: path of this object; empty for the top of the document.
    """

    members: Mapping[str, object]
    where: str = ""

    def place(self, key: str) -> str:
        """Return the full path of a member."""
        return f"{self.where}.{key}" if self.where else key

    def error(self, key: str, message: str) -> FormatError:
        """Return, not raise, an error that names a member."""
        return FormatError(message, where=self.place(key))

    def has(self, key: str) -> bool:
        """Tell whether a member is there and not null."""
        return self.members.get(key) is not None

    def text(self, key: str) -> str:
        """Return a string member.

        Raises:
            FormatError: absent or not a string.
        """
        return self._required(key, self.optional_text(key))

    def optional_text(self, key: str) -> str | None:
        """Return a string member, or None when it is absent.

        Raises:
            FormatError: not a string.
        """
        return _checked(self.members.get(key), str, "a string", self.place(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return an array of strings, empty when it is absent.

        Raises:
            FormatError: not an array, or an item that is not a string (``where`` has its position).
        """
        return tuple(
            self._required(f"{key}[{position}]", _checked(item, str, "a string", self.place(f"{key}[{position}]")))
            for position, item in enumerate(self._items(key))
        )

    def text_map(self, key: str) -> dict[str, str]:
        """Return an object whose members are all strings, empty when it is absent.

        Raises:
            FormatError: not an object, or a member that is not a string.
        """
        inner = self.optional_child(key)
        if inner is None:
            return {}
        texts = {}
        for name, value in inner.members.items():
            # Names come from outside too, and must not write lines of their own into an error.
            member = f"{key}[{name!r:.80}]"
            texts[name] = self._required(member, _checked(value, str, "a string", self.place(member)))
        return texts

    def size(self, key: str) -> int:
        """Return a size in bytes: an integer, never negative, never a boolean or a fraction.

        Raises:
            FormatError: absent, not an integer, or negative.
        """
        size = self._required(key, self.optional_integer(key))
        if size < 0:
            raise self.error(key, f"must not be negative: {size}")
        return size

    def optional_integer(self, key: str) -> int | None:
        """Return an integer member, or None when it is absent.

        Raises:
            FormatError: not an integer; booleans and fractions, also ``1.0``, are none.
        """
        value = self.members.get(key)
        if isinstance(value, bool):
            raise self.error(key, "must be an integer, not a boolean")
        return _checked(value, int, "an integer", self.place(key))

    def flag(self, key: str) -> bool:
        """Return a boolean member, False when it is absent.

        Raises:
            FormatError: not a boolean.
        """
        return bool(_checked(self.members.get(key), bool, "a boolean", self.place(key)))

    def digest(self, key: str) -> Digest:
        """Return a digest member.

        Raises:
            FormatError: absent, not a string, or no sha256 or sha512 digest.
        """
        return _digest(self.text(key), self.place(key))

    def digests(self, key: str) -> tuple[Digest, ...]:
        """Return an array of digests, empty when it is absent.

        Raises:
            FormatError: not an array of strings, or an item that is no sha256 or sha512 digest.
        """
        return tuple(_digest(text, self.place(f"{key}[{i}]")) for i, text in enumerate(self.texts(key)))

    def timestamp(self, key: str) -> int | None:
        """Return a date and time as nanoseconds since 1970, or None; see :func:`parse_timestamp`.

        Raises:
            FormatError: not a string, or not a date and time.
        """
        text = self.optional_text(key)
        return None if text is None else parse_timestamp(text, where=self.place(key))

    def child(self, key: str) -> JsonObject:
        """Return an object member.

        Raises:
            FormatError: absent or not an object.
        """
        return self._required(key, self.optional_child(key))

    def optional_child(self, key: str) -> JsonObject | None:
        """Return an object member, or None when it is absent.

        Raises:
            FormatError: not an object.
        """
        members = _checked(self.members.get(key), dict, "an object", self.place(key))
        return None if members is None else JsonObject(members, self.place(key))

    def children(self, key: str) -> tuple[JsonObject, ...]:
        """Return an array of objects, empty when it is absent.

        Raises:
            FormatError: not an array, or an item that is not an object (``where`` has its position).
        """
        return json_objects(self._items(key), where=self.place(key))

    def _items(self, key: str) -> Sequence[object]:
        return _checked(self.members.get(key), list, "an array", self.place(key)) or ()

    def _required(self, key: str, value: _T | None) -> _T:
        if value is None:
            raise self.error(key, "is missing")
        return value


def json_objects(items: Iterable[object], *, where: str = "") -> tuple[JsonObject, ...]:
    """Return the items of an array, all of which must be objects, each with its place.

    Args:
        items: the parsed array.
        where: path of the array; empty for the top of the document.

    Raises:
        FormatError: an item is not an object, null included.
    """
    objects = []
    for position, item in enumerate(items):
        place = f"{where}[{position}]"
        if not isinstance(item, dict):
            raise FormatError(f"must be an object, not {_name_of(item)}", where=place)
        objects.append(JsonObject(item, place))
    return tuple(objects)


def _checked(value: object, kind: type[_T], expected: str, where: str) -> _T | None:
    """Return a value of the expected type, or None for null."""
    if value is None or isinstance(value, kind):
        return value
    raise FormatError(f"must be {expected}, not {_name_of(value)}", where=where)


def _digest(text: str, where: str) -> Digest:
    """Parse a digest inside a document, where a bad one is the document's fault."""
    try:
        return Digest.parse(text)
    except InvalidReference as error:
        raise FormatError(str(error), where=where) from error


def parse_timestamp(text: str, *, where: str = "") -> int | None:
    """Read a date and time with its offset, such as ``2026-11-02T03:04:05.678901234Z``.

    Args:
        text: the date and time; fractions beyond nanoseconds are cut off.
        where: place of the text in its document, for the error.

    Returns:
        Nanoseconds since 1970-01-01T00:00:00Z, or None for a time that 64 bits of them cannot hold. That covers Go's
        zero time, year 1, which builders write to say that they do not know.

    Raises:
        FormatError: not a date and time, or one that no calendar has.

    Source: RFC 3339, section 5.6.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise FormatError(f"not a date and time: {text!r:.60}", where=where)
    *fields, fraction, sign, offset_hours, offset_minutes = match.groups()
    try:
        local = datetime(*map(int, fields), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError as error:
        raise FormatError(f"not a date and time: {text!r:.60}", where=where) from error
    seconds = (local - _EPOCH) // timedelta(seconds=1)
    if sign is not None:
        hours, minutes = int(offset_hours), int(offset_minutes)
        if hours >= 24 or minutes >= 60:
            raise FormatError(f"not an offset from UTC: {text!r:.60}", where=where)
        offset = hours * 3600 + minutes * 60
        seconds += offset if sign == "-" else -offset
    nanoseconds = seconds * 1_000_000_000 + int((fraction or "")[:9].ljust(9, "0"))
    return nanoseconds if -MAX_INTEGER - 1 <= nanoseconds <= MAX_INTEGER else None


def format_timestamp(ns: int) -> str:
    """Return nanoseconds since 1970 as a date and time in UTC, the fraction without zeros at its end.

    Raises:
        FormatError: a time outside the years 1 to 9999, for which there is no such text.
    """
    seconds, fraction = divmod(ns, 1_000_000_000)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError as error:
        raise FormatError(f"{seconds} seconds since 1970 is no time of a calendar") from error
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + digits + "Z"
