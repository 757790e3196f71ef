"""The choice of a backend, for machines of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from layerfs.errors import BackendUnavailable
from layerfs.linux.probe import Feature, privilege_hint
from layerfs.mount import choose
from layerfs.mount.choose import BackendStatus, choose_backend, explain_backends

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretend to be a machine where the named features do not work."""

    def pretend(**broken: str) -> None:
        def feature(name: str) -> Feature:
            reason = broken.get(name.replace("-", "_"))
            return Feature(name, reason is None, reason or "works")

        monkeypatch.setattr(choose, "feature", feature)

    return pretend


def test_the_merged_image_comes_first(machine: Machine) -> None:
    machine()
    status = choose_backend()
    assert (status.backend, status.lower, status.usable) == ("overlay", "erofs", True)
    assert choose_backend("overlay", "dirs").lower == "dirs"
    assert [str(one).split(":")[0] for one in explain_backends()] == ["overlay", "overlay (lower=dirs)", "fuse"]


def test_without_erofs_directories_are_taken_unless_erofs_is_asked_for(machine: Machine) -> None:
    machine(erofs="this kernel has no erofs file system")
    assert choose_backend().lower == "dirs"
    with pytest.raises(BackendUnavailable) as caught:
        choose_backend("overlay", "erofs")
    assert str(caught.value) == "backend overlay does not work here: this kernel has no erofs file system"
    assert caught.value.hint == "use --backend overlay --lower dirs"
    assert caught.value.reasons == {"overlay": "this kernel has no erofs file system"}


def test_fuse_is_explained_in_one_line(machine: Machine) -> None:
    machine(fuse="/dev/fuse cannot be opened")
    with pytest.raises(BackendUnavailable) as caught:
        choose_backend("fuse")
    assert "\n" not in str(caught.value)
    assert "/dev/fuse cannot be opened" in str(caught.value)
    assert caught.value.hint == "use --backend overlay"
    assert caught.value.exit_code == 8


def test_without_privilege_root_is_the_way_out(machine: Machine) -> None:
    machine(privilege="user 1000 lacks CAP_SYS_ADMIN", fuse="/dev/fuse cannot be opened")
    with pytest.raises(BackendUnavailable) as caught:
        choose_backend()
    reasons = "overlay: user 1000 lacks CAP_SYS_ADMIN; fuse: /dev/fuse cannot be opened"
    assert str(caught.value) == f"no backend works here: {reasons}"
    assert caught.value.hint == privilege_hint()
    assert set(caught.value.reasons) == {"overlay", "overlay (lower=dirs)", "fuse"}


def test_without_privilege_fuse_is_the_choice(machine: Machine) -> None:
    machine(privilege="user 1000 lacks CAP_SYS_ADMIN")
    assert choose_backend().backend == "fuse"
    with pytest.raises(BackendUnavailable) as caught:
        choose_backend("overlay")
    assert caught.value.hint == "use --backend fuse"
    with pytest.raises(BackendUnavailable) as caught:
        choose_backend("fuse", "dirs")
    assert "not directories" in str(caught.value)


def test_explanations_read_as_sentences(machine: Machine) -> None:
    machine(erofs_file="this kernel mounts EROFS from block devices only")
    lines = [str(status) for status in explain_backends()]
    assert lines[0] == "overlay: not, because this kernel mounts EROFS from block devices only"
    assert lines[1].startswith("overlay (lower=dirs): usable, ")


@pytest.mark.parametrize(("backend", "lower"), [("zfs", "auto"), ("auto", "squashfs"), ("", "auto")])
def test_unknown_names(backend: str, lower: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        choose_backend(backend, lower)


def test_what_was_tried_in_vain_is_not_chosen_again(machine: Machine) -> None:
    machine()
    tried: list[BackendStatus] = []
    for expected in ("overlay", "fuse", "overlay (lower=dirs)"):
        status = choose_backend(tried=tried)
        assert status.name == expected
        tried.append(replace(status, usable=False, reason=f"{expected} failed"))
    for backend, left in (("auto", tried), ("fuse", tried[1:2]), ("overlay", [tried[0], tried[2]])):
        with pytest.raises(BackendUnavailable) as caught:
            choose_backend(backend, tried=left)
        assert caught.value.reasons == {status.name: status.reason for status in left}
    assert caught.value.hint == "use --backend fuse"
