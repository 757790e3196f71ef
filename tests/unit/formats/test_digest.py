"""Digests: the grammar, computing them, and chain IDs."""

from __future__ import annotations

import hashlib

import pytest

from layerfs.errors import InvalidReference
from layerfs.formats.digest import Digest, chain_id, new_hash

EMPTY_256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
EMPTY_512 = hashlib.sha512(b"").hexdigest()


@pytest.mark.parametrize("text", [f"sha256:{EMPTY_256}", f"sha512:{EMPTY_512}"])
def test_parse_and_print(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert f"{digest.algorithm}:{digest.hex}" == text
    assert digest.short == text.partition(":")[2][:12]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a digest"),
        (EMPTY_256, "not a digest"),
        (f":{EMPTY_256}", "algorithm ''"),
        (f"md5:{'0' * 32}", "algorithm 'md5'"),
        (f"sha1:{'0' * 40}", "algorithm 'sha1'"),
        (f"sha384:{'0' * 96}", "algorithm 'sha384'"),
        (f"SHA256:{EMPTY_256}", "algorithm 'SHA256'"),
        (f"../sha256:{EMPTY_256}", "algorithm '../sha256'"),
        ("sha256:", "64 hex digits, not 0"),
        (f"sha256:{EMPTY_256[:-1]}", "64 hex digits, not 63"),
        (f"sha256:{EMPTY_256}0", "64 hex digits, not 65"),
        (f"sha256:{EMPTY_256}\n", "64 hex digits, not 65"),
        (f"sha256:{EMPTY_256[:-1]}\n", "not lower-case hex"),
        (f"sha256:{EMPTY_256.upper()}", "not lower-case hex"),
        (f"sha256:{'../' * 21}a", "not lower-case hex"),
        (f"sha256:{'٣' * 64}", "not lower-case hex"),
        (f"sha512:{EMPTY_256}", "128 hex digits, not 64"),
        (f"sha256:sha256:{EMPTY_256}", "64 hex digits, not 71"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Digest.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_constructor_refuses_what_could_become_another_path() -> None:
    with pytest.raises(InvalidReference):
        Digest("sha256", "../../../etc/passwd".ljust(64, "a"))


def test_of() -> None:
    assert Digest.of(b"") == Digest("sha256", EMPTY_256)
    assert Digest.of(memoryview(b"abc"), "sha512").hex == hashlib.sha512(b"abc").hexdigest()
    with pytest.raises(InvalidReference, match="md5"):
        Digest.of(b"", "md5")


def test_new_hash_knows_only_registered_algorithms() -> None:
    assert new_hash().name == "sha256"
    assert new_hash("sha512").name == "sha512"
    with pytest.raises(InvalidReference, match="sha1"):
        new_hash("sha1")


def test_order_and_identity() -> None:
    first, second = Digest("sha256", "0" * 64), Digest("sha256", "1" * 64)
    third = Digest("sha512", "0" * 128)
    assert sorted([third, second, first]) == [first, second, third]
    assert len({first, Digest.parse(str(first))}) == 1


def test_chain_id_of_one_layer_is_its_diff_id() -> None:
    for digest in (Digest.of(b"a"), Digest.of(b"a", "sha512")):
        assert chain_id([digest]) == digest


def test_chain_id_of_none_is_that_of_an_empty_tar() -> None:
    assert chain_id([]) == chain_id([Digest.of(b"")])


def test_chain_id_of_several() -> None:
    a, b, c = (Digest.of(name) for name in (b"a", b"b", b"c"))
    two = hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    three = hashlib.sha256(f"sha256:{two} {c}".encode()).hexdigest()
    assert chain_id([a, b]).hex == two
    assert chain_id((a, b, c)).hex == three


def test_chain_id_over_sha512_diff_ids_is_sha256() -> None:
    a, b = Digest.of(b"a", "sha512"), Digest.of(b"b", "sha512")
    assert str(chain_id([a, b])) == "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
