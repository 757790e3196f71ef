"""Every reference survives printing, in both forms, and no text breaks the parsers."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from layerfs.errors import InvalidReference
from layerfs.formats.digest import HEX_LENGTHS, Digest
from layerfs.formats.platform import KNOWN_ARCHITECTURES, Platform
from layerfs.formats.reference import Reference
from layerfs.formats.transport import TRANSPORTS, parse_source

words = st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True)
components = st.builds(
    lambda first, rest: first + "".join(separator + word for separator, word in rest),
    words,
    st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "---"]), words), max_size=3),
)
#: Parts that familiar names treat in a special way have to come up often.
tricky = st.sampled_from(["library", "localhost", "docker.io", "index.docker.io", "a.b", "0" * 64])
paths = st.lists(components | tricky, min_size=1, max_size=4).map("/".join).filter(lambda path: len(path) <= 240)
hosts = st.one_of(
    st.sampled_from(["docker.io", "localhost", "index.docker.io", "[::1]", "Host", "192.168.0.1", "docker.io:443"]),
    st.from_regex(r"[a-zA-Z0-9]{1,5}(-[a-z0-9]{1,3})?\.[a-z]{2,3}(:[0-9]{1,5})?", fullmatch=True),
)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}", fullmatch=True)


@st.composite
def digests(draw: st.DrawFn) -> Digest:
    algorithm = draw(st.sampled_from(sorted(HEX_LENGTHS)))
    length = HEX_LENGTHS[algorithm]
    return Digest(algorithm, draw(st.text("0123456789abcdef", min_size=length, max_size=length)))


@st.composite
def reference_texts(draw: st.DrawFn) -> str:
    # Without a host, a plain word comes first: a path may begin with "a.b", but that would be read as a host.
    begin = draw(hosts | words)
    tag, digest = draw(st.none() | tags), draw(st.none() | digests())
    return f"{begin}/{draw(paths)}" + ("" if tag is None else f":{tag}") + ("" if digest is None else f"@{digest}")


@given(digests())
def test_digests_survive_printing(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest


@given(reference_texts())
@example("docker.io/localhost/x")
@example("docker.io/library/localhost/x")
@example(f"docker.io/library/{'0' * 64}")
@example("index.docker.io/index.docker.io/x")
def test_references_survive_printing_in_both_forms(text: str) -> None:
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert len(reference.familiar) <= len(str(reference))
    assert reference.with_default_tag().with_default_tag() == reference.with_default_tag()


texts = st.text() | st.text("aA0.:/@_-[] \n%é") | st.builds(str.__add__, st.sampled_from(sorted(TRANSPORTS)), st.text())


@given(texts)
def test_any_text_gives_a_reference_or_one_line(text: str) -> None:
    for parse in (Reference.parse, Digest.parse, Platform.parse):
        try:
            parse(text)
        except InvalidReference as error:
            assert str(error).isprintable()  # noqa: PT017


@given(texts | st.builds("{}:{}".format, st.sampled_from(sorted(TRANSPORTS)), st.text() | reference_texts()))
def test_sources_survive_printing(text: str) -> None:
    try:
        source = parse_source(text)
    except InvalidReference as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert parse_source(str(source)) == source


platforms = st.builds(
    Platform,
    st.sampled_from(["linux", "windows", "macos"]),
    st.sampled_from([*sorted(KNOWN_ARCHITECTURES), "x86_64", "armhf", "armel"]),
    st.none() | st.sampled_from(["v1", "v2", "v5", "v6", "7", "v8", "v8.2", "v9", "power9"]),
)


@given(platforms)
def test_platforms_survive_printing_and_fit_themselves(platform: Platform) -> None:
    assert Platform.parse(str(platform)) == platform
    assert platform.rank(platform) == 0


@given(platforms, platforms)
def test_two_different_platforms_never_both_replace_each_other(one: Platform, other: Platform) -> None:
    assert (one.matches(other) and other.matches(one)) == (one == other)
