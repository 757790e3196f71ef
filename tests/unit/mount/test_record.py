"""Mount records: what is kept, what is dropped, what is found."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from layerfs.errors import MountError
from layerfs.linux.mountinfo import MountEntry, read_mounts
from layerfs.mount import record as module
from layerfs.mount.record import MountRecord, MountRecords

MOUNTS = [entry for entry in read_mounts() if entry.target in {"/proc", "/sys", "/dev"}]


@pytest.fixture
def records(tmp_path: Path) -> MountRecords:
    return MountRecords(tmp_path / "run" / "mounts")


def _add(records: MountRecords, entry: MountEntry, container: str | None = None) -> MountRecord:
    return records.add(
        target=entry.target,
        mount_id=entry.mount_id,
        image_id="sha256:" + "0" * 64,
        backend="overlay",
        read_only=container is None,
        container=container,
    )


def _rewrite(records: MountRecords, record: MountRecord, **changes: object) -> None:
    path = Path(records.directory, record.id + ".json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def test_no_records(records: MountRecords) -> None:
    assert records.live() == []
    assert records.find("/proc") is None
    records.remove("0" * 12)


def test_a_record_round_trips(records: MountRecords) -> None:
    record = _add(records, MOUNTS[0], "web")
    assert records.live() == [record]
    assert record.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert os.listdir(records.directory) == [record.id + ".json"]
    assert os.stat(records.directory).st_mode & 0o777 == 0o700
    records.remove(record.id)
    assert records.live() == []


def test_records_are_found_by_container_target_and_id(records: MountRecords, tmp_path: Path) -> None:
    first, second = _add(records, MOUNTS[0], "web"), _add(records, MOUNTS[1])
    assert records.live() == [first, second]
    assert records.find("web") == first
    (tmp_path / "link").symlink_to(second.target)
    for name in (second.target, second.target + "/", str(tmp_path / "link"), second.id):
        assert records.find(name) == second
    assert records.find("we") is None
    assert records.find(os.path.join(second.target, "x")) is None


def test_the_newest_mount_of_a_target_is_found(records: MountRecords) -> None:
    _add(records, MOUNTS[0])
    newest = _add(records, MOUNTS[0])
    assert records.find(MOUNTS[0].target) == newest


@pytest.mark.parametrize(
    "change",
    [
        {"mount_id": 1 << 30},
        {"device": "0:0"},
        {"boot_id": "another boot"},
    ],
)
def test_a_record_of_a_mount_that_is_gone_cleans_itself_up(records: MountRecords, change: dict[str, object]) -> None:
    kept, gone = _add(records, MOUNTS[0]), _add(records, MOUNTS[1])
    _rewrite(records, gone, **change)
    assert records.live() == [kept]
    assert os.listdir(records.directory) == [kept.id + ".json"]


def test_a_record_of_a_dead_namespace_is_dropped_where_that_can_be_known(
    records: MountRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _add(records, MOUNTS[0])
    _rewrite(records, record, namespace="mnt:[1]")
    real = module._namespace

    def hidden(pid: str) -> str:
        if pid == "self":
            return real(pid)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "_namespace", hidden)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [one.id for one in records.live()] == [record.id]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert records.live() == []


def test_a_record_of_a_living_namespace_is_kept(records: MountRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _add(records, MOUNTS[0])
    _rewrite(records, record, namespace="mnt:[1]")
    real, own = module._namespace, str(os.getpid())
    monkeypatch.setattr(module, "_namespace", lambda pid: "mnt:[1]" if pid == own else real(pid))
    assert [one.id for one in records.live()] == [record.id]
    # The number was given to another namespace, which does not have the mount.
    _rewrite(records, record, mount_id=1 << 30)
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # for others, a process that they may not look at may have it
    assert records.live() == []


def test_a_moved_mount_is_followed(records: MountRecords) -> None:
    record = _add(records, MOUNTS[0])
    _rewrite(records, record, target="/where/it/was")
    assert records.live() == [record]


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", '{"id": 1}'])
def test_what_is_no_record_is_removed(records: MountRecords, content: str) -> None:
    record = _add(records, MOUNTS[0])
    broken = Path(records.directory, "broken.json")
    broken.write_text(content)
    Path(records.directory, ".new.json.1234").write_text("being written by somebody else")
    assert records.live() == [record]
    assert not broken.exists()
    assert len(os.listdir(records.directory)) == 2


def test_fields_of_a_newer_version_are_ignored(records: MountRecords) -> None:
    record = _add(records, MOUNTS[0])
    _rewrite(records, record, invented_later=[1])
    assert records.live() == [record]


def test_a_mount_that_is_gone_is_not_recorded(records: MountRecords) -> None:
    entry = dataclasses.replace(MOUNTS[0], mount_id=1 << 30)
    with pytest.raises(MountError, match=f"the mount at {entry.target} is gone"):
        _add(records, entry)
    assert not os.path.exists(records.directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"mount_id": []}, {"created": "x"}, {"created": None}, {"pid": "x"}, {"pid": 1.5}, {"pid": 10**30}, {"pid": 0},
        {"image_id": 5}, {"image_id": "x"}, {"container": []}, {"read_only": 1}, {"target": None}, {"mount_id": -1},
        {"mount_id": True},
    ],
)  # fmt: skip
def test_a_record_whose_fields_are_something_else_is_none(records: MountRecords, changes: dict[str, object]) -> None:
    good, bad = _add(records, MOUNTS[0]), _add(records, MOUNTS[1])
    _rewrite(records, bad, **changes)
    assert records.live() == [good]
    assert os.listdir(records.directory) == [good.id + ".json"]


def test_a_record_is_called_as_its_file(records: MountRecords) -> None:
    """What it says itself may lead anywhere."""
    record = _add(records, MOUNTS[0])
    victim = Path(records.directory).parent / "victim.json"
    victim.write_text("{}")
    _rewrite(records, record, id="../victim", boot_id="another")
    assert records.live() == []
    assert victim.exists()
    assert not os.listdir(records.directory)


def test_what_is_no_file_is_no_record(records: MountRecords, tmp_path: Path) -> None:
    good = _add(records, MOUNTS[0])
    place = Path(records.directory)
    os.mkfifo(place / "fifo.json")
    (place / "link.json").symlink_to("/dev/zero")
    (place / "directory.json").mkdir()
    (place / "deep.json").write_text("[" * 200_000)
    (place / "text.json").write_text('"text"')
    assert records.live() == [good]
    assert sorted(os.listdir(place)) == sorted([good.id + ".json", "directory.json"])
