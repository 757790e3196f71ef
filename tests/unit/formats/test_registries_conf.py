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


def test_a_port_is_no_part_of_what_a_prefix_stands_for() -> None:
    config = parse(
        """
        [[registry]]
        prefix = "*.corp.example"
        location = "corp-mirror.example"
        [[registry]]
        prefix = "*.odd.example:5000"
        location = "odd-mirror.example"
        [[registry]]
        location = "plain.example"
        insecure = true
        [[registry]]
        prefix = "*.bad.example"
        blocked = true
        """
    )
    assert places(config, "x.corp.example/a:1") == [("corp-mirror.example/a:1", False)]
    assert places(config, "x.y.corp.example:5000/a:1") == [("corp-mirror.example:5000/a:1", False)]
    assert places(config, "corp.example/a:1") == [("corp.example/a:1", False)]
    assert places(config, "x.odd.example:5000/a:1") == [("odd-mirror.example/a:1", False)]
    assert places(config, "x.odd.example/a:1") == [("x.odd.example/a:1", False)]
    assert places(config, "plain.example:5000/a:1") == [("plain.example:5000/a:1", True)]
    assert places(config, "plain.example.org/a:1") == [("plain.example.org/a:1", False)]
    for name in ("x.bad.example/a", "x.bad.example:5000/a:1"):
        with pytest.raises(Denied, match=r"\*\.bad\.example is blocked"):
            places(config, name)
        with pytest.raises(Denied):
            config.find(name.partition("/")[0])
    found = config.find("plain.example:5000")
    assert found is not None
    assert found.insecure
    assert config.find("other.example") is None


def test_official_images_and_single_tags_can_be_moved() -> None:
    config = parse(
        """
        unqualified-search-registries = ["docker.io/library"]
        [[registry]]
        prefix = "docker.io/library"
        location = "r.example:5000/official"
        [[registry]]
        prefix = "r.example/app:v1"
        location = "r.example/old/app"
        [[registry]]
        prefix = "q.example/team"
        location = "docker.io/team"
        """
    )
    assert places(config, "debian:12") == [("r.example:5000/official/debian:12", False)]
    assert [str(name) for name in config.expand("debian")] == ["docker.io/library/debian:latest"]
    assert places(config, "r.example/app:v1") == [("r.example/old/app:v1", False)]
    assert places(config, "r.example/app:v2") == [("r.example/app:v2", False)]
    assert places(config, f"q.example/team/app@{DIGEST}") == [(f"docker.io/team/app@{DIGEST}", False)]
    with pytest.raises(FormatError, match="makes no name"):
        places(parse('[[registry]]\nprefix = "q.example/team"\nlocation = "docker.io"'), "q.example/team/app")


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
        parse(f'{text}short-name-mode = "enforcing"').expand("app:1")
    for mode in ("", "permissive", "disabled"):
        names = parse(f'{text}short-name-mode = "{mode}"').expand("team/app:1")
        assert [str(name) for name in names] == ["one.example/team/app:1", "two.example/team/app:1"]
    assert [str(name) for name in parse(text).expand("docker.io/app:1")] == ["docker.io/library/app:1"]
    assert [str(name) for name in parse(text).expand(f"localhost/app@{DIGEST}")] == [f"localhost/app@{DIGEST}"]


@pytest.mark.parametrize("mode", ["", "enforcing", "permissive", "disabled"])
def test_an_alias_keeps_tag_and_digest(mode: str) -> None:
    config = parse(f'short-name-mode = "{mode}"\n[aliases]\n"team/app" = "x.example/team/app"')
    assert str(config.expand(f"team/app:1@{DIGEST}")[0]) == f"x.example/team/app:1@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("= 1", "0.conf"),
        ('[registries.search]\nregistries = ["a"]', "0.conf"),
        ("[[registry]]\nblocked = true", "registry[0].location"),
        ('[[registry]]\nlocation = "https://r.example"', "registry[0].location"),
        ('[[registry]]\nlocation = "r.example"\ninsecure = "yes"', "registry[0].insecure"),
        ('[[registry]]\nlocation = "r.example/A"', "registry[0].location"),
        (
            """[[registry]]\nlocation = "r.example"\nmirror-by-digest-only = true
            mirror = [{location = "m.example", pull-from-mirror = "all"}]""",
            "registry[0].mirror[0].pull-from-mirror",
        ),
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
