"""Names in certs.d."""

from __future__ import annotations

import pytest

from layerfs.errors import FormatError
from layerfs.formats.certs_d import sort_certificates


def test_names() -> None:
    found = sort_certificates(["b.crt", "a.crt", "me.cert", "me.key", "README", ".crt.swp"], "x")
    assert found.authorities == ("a.crt", "b.crt")
    assert found.pairs == (("me.cert", "me.key"),)


@pytest.mark.parametrize("lonely", ["me.cert", "me.key"])
def test_half_a_pair(lonely: str) -> None:
    with pytest.raises(FormatError, match=r"certs: me\.\w+ has no me\."):
        sort_certificates([lonely], "certs")
