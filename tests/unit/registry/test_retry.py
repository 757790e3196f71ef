"""When to try again, and how long to wait before."""

from __future__ import annotations

import time

import pytest

from layerfs.errors import RateLimited, RegistryError, Unreachable
from layerfs.registry.retry import Backoff, parse_retry_after


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3.0), (" 0 ", 0.0), (None, None), ("", None), ("soon", None), ("-1", None), ("1e3", None),
        ("9" * 400, None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Mon, 99 Foo 2024", None), ("²", None),
    ],
)  # fmt: skip
def test_retry_after(text: str | None, expected: float | None) -> None:
    assert parse_retry_after(text) == expected


def test_a_date_ahead() -> None:
    from email.utils import formatdate

    found = parse_retry_after(formatdate(time.time() + 50, usegmt=True))
    assert found is not None
    assert 48 < found <= 50


def test_attempts_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    tries = Backoff(3, 1.0, None)
    error = Unreachable("x", temporary=True)
    tries.wait(error)
    tries.wait(error)
    with pytest.raises(Unreachable):
        tries.wait(error)
    assert [record.message.partition(";")[0] for record in caplog.records] == ["x", "x"]
    assert "trying again in" in caplog.text
    tries.renew()
    tries.wait(error)
    with pytest.raises(RegistryError):
        tries.wait(RegistryError("permanent"))


def test_too_long_a_wait_is_an_error() -> None:
    with pytest.raises(RateLimited) as caught:
        Backoff(9, 0.0, None).wait(RateLimited("x", retry_after=3600))
    assert caught.value.hint is not None
    assert "60 minutes" in caught.value.hint


def test_waiting_can_be_interrupted() -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        raise Enough

    with pytest.raises(Enough):
        Backoff(9, 60.0, check).wait(Unreachable("x", temporary=True))
