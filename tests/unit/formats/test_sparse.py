"""The maps of sparse members, in all their spellings."""

from __future__ import annotations

import tracemalloc

import pytest

from layerfs.errors import FormatError, LimitExceeded, UnsupportedFormat
from layerfs.formats.tar.member import Member
from layerfs.formats.tar.sparse import MAX_PIECES
from tests.unit.formats.raw_tar import END, entry, header, octal, pad, pax, read

VERSION_1 = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"name"}


def pieces(*pairs: tuple[int, int]) -> bytes:
    return b"".join(octal(offset, 12) + octal(length, 12) for offset, length in pairs)


def old_gnu(size: int | bytes, data: bytes, *groups: list[tuple[int, int]], more: bytes = b"\1") -> bytes:
    """Return an old GNU sparse member: up to 4 pieces in the header, 21 in each block behind it."""
    first, *others = groups
    real = size if isinstance(size, bytes) else octal(size, 12)
    tail = pieces(*first).ljust(96, b"\0") + (more if others else b"\0") + real
    # The sparse fields begin at 386, inside what POSIX calls the prefix (at 345).
    block = header(b"name", b"S", len(data), magic=b"ustar  \0")
    block = block[:386] + tail.ljust(126, b"\0")
    block = block[:148] + b" " * 8 + block[156:]
    block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
    for number, group in enumerate(others, 1):
        flag = more if number < len(others) else b"\0"
        block += (pieces(*group).ljust(504, b"\0") + flag).ljust(512, b"\0")
    return block + pad(data)


def version_1(size: bytes, text: bytes, data: bytes) -> bytes:
    return pax({**VERSION_1, b"GNU.sparse.realsize": size}) + entry(b"GNUSparseFile.0/f", pad(text) + data)


def only(archive: bytes) -> Member:
    member, after = read(archive + header(b"after") + END)
    assert after.name == b"after"
    return member


def repeated(*pairs: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    records = [(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.numblocks", b"%d" % len(pairs))]
    for offset, length in pairs:
        records += [(b"GNU.sparse.offset", offset), (b"GNU.sparse.numbytes", length)]
    return records


def listed(numbers: bytes) -> dict[bytes, bytes]:
    return {b"GNU.sparse.size": b"9000", b"GNU.sparse.name": b"name", b"GNU.sparse.map": numbers}


TWO = ((0, 512), (8000, 100))
DATA = b"a" * 512 + b"b" * 100


@pytest.mark.parametrize(
    "archive",
    [
        old_gnu(9000, DATA, list(TWO)),
        old_gnu(9000, DATA, [TWO[0]], [TWO[1]]),
        old_gnu(9000, DATA, [TWO[0]], [], [], [TWO[1], (9000, 0)]),
        old_gnu(b"\x80" + bytes(9) + (9000).to_bytes(2, "big"), DATA, list(TWO)),
        pax(repeated((b"0", b"512"), (b"8000", b"100"))) + entry(b"name", DATA),
        pax(listed(b"0,512,8000,100")) + entry(b"GNUSparseFile.0/f", DATA),
        pax(listed(b"0,512,8000,100,9000,0")) + entry(b"GNUSparseFile.0/f", DATA),
        version_1(b"9000", b"2\n0\n512\n8000\n100\n", DATA),
        version_1(b"9000", b"3\n0\n512\n8000\n100\n9000\n0\n", DATA),
    ],
    ids=["gnu", "gnu+1", "gnu+3", "gnu-base256", "0.0", "0.1", "0.1-empty-end", "1.0", "1.0-empty-end"],
)
def test_two_pieces(archive: bytes) -> None:
    member = only(archive)
    assert (member.name, member.kind, member.size, member.data_size) == (b"name", b"0", 9000, 612)
    assert member.sparse == TWO
    assert archive[member.data_offset :][:612] == DATA


@pytest.mark.parametrize(
    "archive",
    [
        old_gnu(9000, b"", []),
        pax(repeated((b"9000", b"0"))) + entry(b"name"),
        pax(listed(b"9000,0")) + entry(b"x"),
        version_1(b"9000", b"0\n", b""),
    ],
    ids=["gnu", "0.0", "0.1", "1.0"],
)
def test_nothing_but_a_hole(archive: bytes) -> None:
    member = only(archive)
    assert (member.size, member.data_size, member.sparse) == (9000, 0, ())


def test_a_map_longer_than_a_block() -> None:
    count = 1000
    text = b"%d\n" % count + b"".join(b"%d\n1\n" % (2 * number) for number in range(count))
    archive = version_1(b"5000", text, b"d" * count)
    for step in (512, 1024, 1 << 20):
        member = read(archive + END, step)[0]
        assert member.sparse == tuple((2 * number, 1) for number in range(count))
        assert archive[member.data_offset :][:count] == b"d" * count
    old = old_gnu(
        5000, b"d" * 46, [(n, 1) for n in range(0, 8, 2)], *([(n, 1) for n in range(s, s + 42, 2)] for s in (8, 50))
    )
    for step in (512, 1024, 1 << 20):
        assert read(old + END, step)[0].sparse == tuple((n, 1) for n in range(0, 92, 2))


@pytest.mark.parametrize(
    "archive",
    [
        old_gnu(9000, DATA, [(0, 512), (8950, 100)]),  # leaves the file
        old_gnu(9000, DATA, [(0, 512), (511, 100)]),  # overlaps
        old_gnu(9000, DATA, [(8000, 100), (0, 512)]),  # descends
        old_gnu(9000, DATA, [(0, 512)]),  # covers less than is stored
        old_gnu(9000, DATA, [(0, 512), (8000, 101)]),  # and more
        old_gnu(9000, DATA, [(0, 9000)]),
        old_gnu(b"\xff" * 12, b"", []),
        pax(listed(b"0,512,8000")) + entry(b"x", DATA),
        pax(listed(b"0,512,8000,-100")) + entry(b"x", DATA),
        pax(listed(b"0,512,8000,1e2")) + entry(b"x", DATA),
        pax(listed(b"0, 512,8000,100")) + entry(b"x", DATA),
        pax(repeated((b"0", b"512"), (b"8000", b"100"))[:-1]) + entry(b"x", DATA),
        pax({b"GNU.sparse.size": b"9000"}) + entry(b"x", DATA),  # no map
        pax({b"GNU.sparse.map": b"0,612"}) + entry(b"x", DATA),  # no size
        pax(repeated()) + entry(b"name"),  # what others take for no sparse file at all
        pax(listed(b"")) + entry(b"x"),
        pax([*repeated((b"0", b"612")), (b"GNU.sparse.map", b"8388,612")]) + entry(b"x", DATA),  # two maps
        pax([(b"GNU.sparse.map", b"8388,612"), *repeated((b"0", b"612"))]) + entry(b"x", DATA),
        pax({**listed(b"0,612"), b"GNU.sparse.realsize": b"9001"}) + entry(b"x", DATA),  # two sizes
        pax({**VERSION_1, b"GNU.sparse.realsize": b"9000", b"GNU.sparse.size": b"8000"}) + entry(b"x", DATA),
        pax([*repeated((b"0", b"512"))[:1], (b"GNU.sparse.numblocks", b"2"), *repeated((b"0", b"612"))[2:]])
        + entry(b"x", DATA),  # another count
        pax(
            [
                (b"GNU.sparse.size", b"9000"),
                (b"GNU.sparse.offset", b"0"),
                (b"GNU.sparse.offset", b"8900"),
                (b"GNU.sparse.numbytes", b"512"),
                (b"GNU.sparse.numbytes", b"100"),
            ]
        )
        + entry(b"x", DATA),  # no pairs
        pax({b"GNU.sparse.map": b"0,612", b"GNU.sparse.size": b"9" * 20}) + entry(b"x", DATA),
        version_1(b"x", b"2\n0\n512\n8000\n100\n", DATA),
        version_1(b"9000", b"2\n0\n512\n8000\n", b""),  # ends too soon
        version_1(b"9000", b"", b""),  # no data at all
        version_1(b"9000", b"x\n", b""),
        version_1(b"9000", b"1" * 1024, b""),
        version_1(b"9000", b"-1\n", b""),
        version_1(b"9000", b"99\n", b""),
    ],
)
def test_refused(archive: bytes) -> None:
    with pytest.raises(FormatError):
        read(archive + header(b"after") + END)


def test_other_versions_are_named() -> None:
    with pytest.raises(UnsupportedFormat, match="2"):
        read(pax({b"GNU.sparse.major": b"2", b"GNU.sparse.minor": b"0"}) + entry(b"x") + END)


def test_maps_are_limited() -> None:
    with pytest.raises(LimitExceeded, match="pieces"):
        read(version_1(b"9000", b"%d\n" % (MAX_PIECES + 1), b""))
    extension = (pieces(*((0, 0),) * 21).ljust(504, b"\0") + b"\1").ljust(512, b"\0")
    archive = old_gnu(9000, b"", [], [])[:512] + extension * (MAX_PIECES // 21 + 2)
    with pytest.raises(LimitExceeded, match="pieces"):
        read(archive)


def test_an_endless_map_costs_little_memory() -> None:
    text = pad(b"%d\n" % MAX_PIECES) + b"\n" * (8 << 20)
    archive = pax({**VERSION_1, b"GNU.sparse.realsize": b"1"}) + header(b"f", size=(8 << 30) - 1) + b"%d\n" % MAX_PIECES
    archive += b"1" * 20 * 3
    archive += text
    archive = archive[: len(archive) // 512 * 512]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(archive, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
