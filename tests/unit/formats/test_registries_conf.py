"""registries.conf: mirrors, blocked registries, short names."""

from __future__ import annotations

import pytest

from layerfs.errors import Denied, FormatError, InvalidReference
from layerfs.formats.reference import Reference
from layerfs.formats.registries_conf import RegistriesConfig

DIGEST = "sha256:" + "a" * 64


def parse(*texts: str) -> RegistriesConfig:
    return RegistriesConfig.parse((f"{number}.conf", text.encode()) for number, text in enumerate(texts))


def places(config: RegistriesConfig, name: str) -> list[tuple[str, bool]]:
    reference = Reference.parse(name).with_default_tag()
    return [(str(place.reference), place.insecure) for place in config.endpoints(reference)]


def test_without_files_as_docker() -> None:
    config = parse()
    assert places(config, "debian") == [("docker.io/library/debian:latest", False)]
    assert [str(name) for name in config.expand("debian:12")] == ["docker.io/library/debian:12"]


def test_mirrors_come_first_and_keep_the_rest_of_the_name() -> None:
    config = parse(
        """
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "digests.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.example"
        pull-from-mirror = "tag-only"
        """
    )
    assert places(config, "debian") == [
        ("mirror.example:5000/hub/library/debian:latest", True),
        ("tags.example/library/debian:latest", False),
        ("docker.io/library/debian:latest", False),
    ]
    assert places(config, f"debian@{DIGEST}") == [
        (f"mirror.example:5000/hub/library/debian@{DIGEST}", True),
        (f"digests.example/library/debian@{DIGEST}", False),
        (f"docker.io/library/debian@{DIGEST}", False),
    ]


def test_mirror_by_digest_only() -> None:
    config = parse(
        """
        [[registry]]
        location = "r.example"
        mirror-by-digest-only = true
        mirror = [{location = "m.example"}]
        """
    )
    assert places(config, "r.example/a:1") == [("r.example/a:1", False)]
    assert places(config, f"r.example/a@{DIGEST}")[0] == (f"m.example/a@{DIGEST}", False)


def test_the_longest_prefix_wins_and_ends_at_a_component() -> None:
    config = parse(
        """
        [[registry]]
        prefix = "r.example/team"
        location = "a.example/x"
        [[registry]]
        prefix = "r.example/team/app"
        location = "b.example/y"
        insecure = true
        [[registry]]
        prefix = "*.corp.example"
        insecure = true
        [[registry]]
        location = "bad.example"
        blocked = true
        """
    )
    assert places(config, "r.example/team/app/z:1") == [("b.example/y/z:1", True)]
    assert places(config, "r.example/team/apps:1") == [("a.example/x/apps:1", False)]
    assert places(config, "r.example/teams:1") == [("r.example/teams:1", False)]
    assert places(config, "x.corp.example/a:1") == [("x.corp.example/a:1", True)]
    with pytest.raises(Denied, match=r"bad\.example is blocked"):
        places(config, "bad.example/a")


def test_drop_ins_replace_by_prefix_and_alias() -> None:
    config = parse(
        'unqualified-search-registries = ["one.example"]\n[aliases]\na = "x.example/a"\nb = "x.example/b"\n'
        '[[registry]]\nlocation = "r.example"\nblocked = true\n',
        '[aliases]\na = "y.example/a"\nb = ""\n[[registry]]\nlocation = "r.example"\n',
    )
    assert str(config.expand("a:1")[0]) == "y.example/a:1"
    assert str(config.expand("b")[0]) == "one.example/b:latest"
    assert places(config, "r.example/z:1") == [("r.example/z:1", False)]


def test_several_search_registries_never_ask() -> None:
    text = 'unqualified-search-registries = ["one.example", "two.example"]\n'
    with pytest.raises(InvalidReference, match=r"any of one\.example, two\.example"):
        parse(text).expand("app:1")
    for mode in ("permissive", "disabled"):
        names = parse(f'{text}short-name-mode = "{mode}"').expand("team/app:1")
        assert [str(name) for name in names] == ["one.example/team/app:1", "two.example/team/app:1"]
    assert [str(name) for name in parse(text).expand("docker.io/app:1")] == ["docker.io/library/app:1"]
    assert [str(name) for name in parse(text).expand(f"localhost/app@{DIGEST}")] == [f"localhost/app@{DIGEST}"]


def test_an_alias_keeps_tag_and_digest() -> None:
    config = parse('[aliases]\n"team/app" = "x.example/team/app"')
    assert str(config.expand(f"team/app:1@{DIGEST}")[0]) == f"x.example/team/app:1@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("= 1", "0.conf"),
        ('[registries.search]\nregistries = ["a"]', "0.conf"),
        ("[[registry]]\nblocked = true", "registry[0].location"),
        ('[[registry]]\nlocation = "https://r.example"', "registry[0].location"),
        ('[[registry]]\nlocation = "r.example"\ninsecure = "yes"', "registry[0].insecure"),
        ('[[registry]]\nprefix = "*.x.example"\nlocation = "r.example"', "registry[0].location"),
        ('[[registry]]\nlocation = "r.example"\nmirror = [{location = ""}]', "registry[0].mirror[0]"),
        ('[[registry]]\nlocation = "r.example"\nmirror = [{location = "m", pull-from-mirror = "x"}]', "pull-from"),
        ('[registry]\nlocation = "r.example"', "0.conf.registry"),
        ('short-name-mode = "ask"', "short-name-mode"),
        ("unqualified-search-registries = 1", "unqualified-search-registries"),
        ('unqualified-search-registries = ["a b"]', "unqualified-search-registries"),
    ],
)
def test_errors_name_the_place(text: str, place: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(text)
    assert place in caught.value.where
