r"""PAX extended header records: ``LENGTH KEY=VALUE\n``, strictly by their grammar.

A lenient reader here is a security hole: when two programs disagree about where a record ends, they see two different
archives (the TARmageddon class). So every record must end with a newline just where its length says.

Source: POSIX.1-2017 pax, "pax Extended Header".
"""

from __future__ import annotations

from layerfs.errors import FormatError, quoted

__all__ = ["parse_records", "parse_time"]

#: Decimal digits of a record length; a header is at most 1 MiB, so more are no length.
_MAX_LENGTH_DIGITS = 8

_DIGITS = b"0123456789"


def parse_records(payload: bytes) -> list[tuple[bytes, bytes]]:
    """Return the (key, value) records in order; a key may occur twice (GNU sparse 0.0 does that on purpose).

    Args:
        payload: the extended header's data, exactly as long as its size field says.

    Raises:
        FormatError: a length that is no number or disagrees with the text, a missing ``=`` or newline, an empty key.
    """
    records = []
    position = 0
    end = len(payload)
    while position < end:
        space = payload.find(b" ", position, position + _MAX_LENGTH_DIGITS + 1)
        digits = payload[position:space] if space > position else b""
        if not digits or digits.translate(None, _DIGITS):
            if not payload[position:].strip(b"\0"):
                break  # some writers pad the payload with NULs
            raise FormatError(f"pax record at byte {position} does not begin with its length")
        stop = position + int(digits)
        if stop > end or stop <= space + 1 or payload[stop - 1] != 0x0A:
            raise FormatError(f"pax record at byte {position} has a wrong length")
        key, equals, value = payload[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise FormatError(f"pax record at byte {position} has no key")
        records.append((key, value))
        position = stop
    return records


def parse_time(value: bytes, key: str) -> tuple[int, int]:
    """Return a PAX time as (seconds, nanoseconds); digits behind the ninth of a fraction are cut off.

    Args:
        value: a decimal number, possibly negative, with or without a fraction.
        key: the record's key, for the message.

    Raises:
        FormatError: not such a number.
    """
    negative = value.startswith(b"-")
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if not whole or len(whole) > 20 or (whole + fraction).translate(None, _DIGITS):
        raise FormatError(f"pax {key} is no time: {quoted(value, 40)}")
    seconds = int(whole)
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if not negative:
        return seconds, nanoseconds
    # -1.25 s is 0.75 s after second -2.
    return (-seconds - 1, 1_000_000_000 - nanoseconds) if nanoseconds else (-seconds, 0)
