"""Probes: what they answer, that they leave nothing behind, that they are quick."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from layerfs.linux import probe


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    probe.feature.cache_clear()
    yield
    probe.feature.cache_clear()


def test_all_features_leave_nothing_behind() -> None:
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = file.read()
    descriptors = len(os.listdir("/proc/self/fd"))
    features = [probe.feature(name) for name in probe._PROBES]
    with open("/proc/self/mountinfo", "rb") as file:
        assert file.read() == mounts
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for one in features:
        assert one.reason
        assert not one.reason.endswith(".")
        assert "\n" not in one.reason


def test_a_feature_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def count() -> tuple[bool, str]:
        nonlocal calls
        calls += 1
        return True, "yes"

    monkeypatch.setitem(probe._PROBES, "erofs", count)
    assert probe.feature("erofs") is probe.feature("erofs")
    assert calls == 1


def test_an_unknown_feature_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown feature: warp"):
        probe.feature("warp")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENODEV, "this kernel has no erofs file system"),
        (errno.ENOSYS, "there is no new mount API here (needs Linux 5.2, and no filter that hides it)"),
        (errno.EIO, "input/output error"),
    ],
)
def test_reasons(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def refuse(_fstype: str) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(probe, "fsopen", refuse)
    answer = probe.feature("erofs")
    assert (answer.usable, answer.reason) == (False, reason)


def test_without_privilege_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fstype: str) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(probe, "fsopen", refuse)
    monkeypatch.setitem(probe._PROBES, "privilege", lambda: (False, "user 1000 lacks CAP_SYS_ADMIN"))
    assert probe.feature("overlay").reason == "user 1000 lacks CAP_SYS_ADMIN"


@pytest.mark.parametrize(("number", "usable"), [(errno.ENOTBLK, False), (errno.ENXIO, True), (errno.EPERM, False)])
def test_erofs_file(monkeypatch: pytest.MonkeyPatch, number: int, usable: bool) -> None:
    def create(_context: int) -> None:
        raise OSError(number, os.strerror(number))

    def nothing(*_arguments: object) -> None:
        return None

    monkeypatch.setattr(probe, "fsopen", lambda _fstype: os.dup(0))
    monkeypatch.setattr(probe, "fsconfig_create", create)
    monkeypatch.setattr(probe, "fsconfig_string", nothing)
    monkeypatch.setattr(probe, "fsconfig_flag", nothing)
    answer = probe.feature("erofs-file")
    assert answer.usable is usable
    if number == errno.ENOTBLK:
        assert "6.12" in answer.reason
