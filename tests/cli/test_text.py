"""Sizes, times, templates, tables."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from unittest.mock import Mock

import click
import pytest

from layerfs_cli.output import as_json
from layerfs_cli.settings import Settings
from layerfs_cli.template import Template
from layerfs_cli.text import human_age, human_size, printable, rfc3339, shorten, shown_name


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (12_300, "12.3kB"), (5_830_000, "5.83MB"), (331_000_000, "331MB"), (999_900, "1MB"),
     (1_090_000_000, "1.09GB"), (10**15, "1PB"), (10**18, "1e+03PB")],
)  # fmt: skip
def test_size(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "in the future"), (0.2, "less than a second ago"), (1, "1 second ago"), (90, "1 minute ago"),
     (2 * 3600, "2 hours ago"), (3 * 86400, "3 days ago"), (21 * 86400, "3 weeks ago"), (90 * 86400, "3 months ago"),
     (1000 * 86400, "2 years ago")],
)  # fmt: skip
def test_age(seconds: float, text: str) -> None:
    assert human_age(0, now=seconds) == text


def test_unknown_times() -> None:
    assert human_age(None) == ""
    assert rfc3339(None) is None


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1_500_000_000, "1970-01-01T00:00:01.5Z"), (-1, "1969-12-31T23:59:59.999999999Z"),
     (2**63 * 10**9, f"@{2**63}")],
)  # fmt: skip
def test_time(ns: int, text: str) -> None:
    assert rfc3339(ns) == text


def test_names() -> None:
    assert printable("a\x1b[0m\u202eb\x85") == "a\\x1b[0m\\u202eb\\x85"
    assert shown_name(b"\xff\n", terminal=True) == b"\\xff\\x0a"
    assert shown_name(b"\xff\n", terminal=False) == b"\xff\n"
    assert shown_name("é".encode(), terminal=True) == "é".encode()
    assert shorten("abcdef", 4) == "abc…"


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", "é\x7f\x9b\u202e".encode(), bytes(range(1, 256))])
def test_json_keeps_every_byte(name: bytes) -> None:
    text = as_json({"name": os.fsdecode(name)})
    assert not {"\x7f", "\x9b", "\u202e"} & set(text)
    text.encode()
    assert os.fsencode(json.loads(text)["name"]) == name


DATA = {
    "Id": "abc",
    "Names": ["a", "b"],
    "Config": {"Env": ["X=1"], "exposed_ports": None},
    "ok": True,
    "Labels": {"a.b": "c"},
    "Huge": 10**400,
    "Ports": {"ExposedPorts": {"80/tcp": {}}},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.Id}}", "abc"),
        ("{{ .ID }}\\t{{.Names}}\\n", "abc\t[a b]\n"),
        ('{{join .Names ", "}}', "a, b"),
        ("{{.Id | upper | lower}}", "abc"),
        ("{{json .Config.Env}}", '["X=1"]'),
        ("{{.Config.ExposedPorts}}{{.OK}}", "true"),
        ('{{json (split .Id "b")}}', '["a","c"]'),
        ('{{split .Id "b"}}', "[a c]"),
        ("{{println .Id}}", "abc\n"),
        ("{{`x`}}", "x"),
        ("{{range .Names}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $name := .Names}}{{if $i}}, {{end}}{{$i}}={{$name}}{{end}}", "0=a, 1=b"),
        ("{{range $name := .Names}}{{$name}}{{$.Id}}{{end}}", "aabcbabc"),
        ("{{range $key, $value := .Labels}}{{$key}}:{{$value}}{{end}}", "a.b:c"),
        ("{{range .Config.Volumes}}x{{else}}none {{.Id}}{{end}}", "none abc"),
        ("{{range .Id}}x{{end}}", None),
        ("{{if .OK}}yes{{else}}no{{end}}", "yes"),
        ("{{if not .OK}}yes{{else}}no{{end}}", "no"),
        ('{{if eq .Id "x" "y"}}1{{else if eq .Id "x" "abc"}}2{{else}}3{{end}}', "2"),
        ("{{if .OK}}1{{else if .None}}2{{end}}", "1"),
        ("{{with .Config}}{{len .Env}}{{.Cmd}}{{else}}none{{end}}", "1"),
        ("{{with $env := .Config.Env}}{{index $env 0}}{{end}}", "X=1"),
        ("{{with .Config.Labels}}x{{else}}{{.Id}}{{end}}", "abc"),
        ('{{$found := ""}}{{range .Names}}{{$found = .}}{{end}}{{$found}}', "b"),
        ("{{range .Names}}{{$inner := .}}{{end}}{{$inner}}", None),
        ("{{$x = 1}}", None),
        ("{{$x, $y := .Names}}", None),
        ("{{if .OK}}", None),
        ("{{if .OK}}{{else}}{{else}}{{end}}", None),
        ("{{if .OK}}{{else}}{{else if .OK}}{{end}}", None),
        ("{{range .Names}}{{else range .Names}}{{end}}", None),
        ("{{end}}", None),
        ("{{if}}x{{end}}", None),
        ("{{/* a remark */}}{{- /* another */ -}}{{.Id}}", "abc"),
        ('{{"}}"}}{{`{{`}}', "}}{{"),
        ("{{(index .Names 1)}}{{(index .Names 0) | upper}}", "bA"),
        ("{{(.Config).Env}}{{(.Config}}", None),
        ("{{(.Config).Env}}", "[X=1]"),
        ('{{printf "%-5s|%3d|%q|%v|%%" .Id 7 .Id .Names}}', 'abc  |  7|"abc"|[a b]|%'),
        ('{{printf "%.2s %x" .Id 255}}', "ab ff"),
        ('{{printf "%d" .Id}}', None),
        ('{{printf "%s"}}', None),
        ('{{printf "%y" .Id}}', None),
        ('{{printf "x" .Id}}', None),
        ('{{print .Id 1 2 "x"}}', "abc1 2x"),
        ("{{println .Id 1}}{{println}}", "abc 1\n\n"),
        ('{{title "abc"}}{{pad "x" 1 2}}|{{truncate .Id 2}}', "Abc x  |ab"),
        ("{{slice .Id 1}}{{slice .Id 0 1}}{{slice .Names 1 2}}", "bca[b]"),
        ("{{slice .Id 4}}", None),
        ('{{and .OK .Id}}{{or .Config.Cmd "none"}}{{and .Config.Cmd .Nonsense}}', "abcnone"),
        ("{{if and (gt 2 1) (le 1 1) (lt 1 2) (ge 2 2) (ne 1 2)}}all{{end}}", "all"),
        ('{{if lt "a" "b"}}x{{end}}', "x"),
        ('{{if lt "a" 1}}x{{end}}', None),
        ("{{.Id | len | eq 3}}{{true}}{{nil}}{{-5}}", "truetrue-5"),
        ('{{define "x"}}{{end}}', None),
        ('{{template "x"}}', None),
        ("{{break}}", None),
        ("{{range .Names}}{{.}}{{break}}{{end}}", "a"),
        ('{{range .Names}}{{if eq . "a"}}{{continue}}{{end}}{{.}}{{end}}', "b"),
        ("{{range .Names}}{{else}}{{break}}{{end}}", None),
        ("{{range $i, $e := 3}}{{$i}}{{$e}} {{end}}{{range -1}}x{{end}}", "00 11 22 "),
        ("{{range 99999999}}x{{end}}", None),
        ("{{range 1000}}{{range 1000}}{{end}}{{end}}", None),
        ('{{printf "%c|%c|%q" 55296 56575 65}}', "\ufffd|\ufffd|'A'"),
        ('{{printf "%.3d|% x|%v" 5 "hi" 1e8}}', "005|68 69|1e+08"),
        ('{{printf "%#x" 5}}', None),
        ('{{printf "%f" .Huge}}', None),
        ('{{printf "%f" true}}', None),
        ('{{printf "%t" "x"}}', None),
        ("{{1e300}} {{1234567.5}} {{0.00001}} {{123456.5}} {{-0.25}}", "1e+300 1.2345675e+06 1e-05 123456.5 -0.25"),
        ("{{eq 1 true}}{{ne true 1}}", "falsetrue"),
        ("{{lt true false}}", None),
        ("{{index .Names true}}", None),
        ("{{.\u0663}}", None),
        ("{{range $x := .Config.Volumes}}x{{else}}<{{$x}}>{{end}}", "<>"),
        ("{{$x := 1}}{{range $x, $y := .Config.Volumes}}{{else}}{{$x}}{{end}}{{$x}}", "1"),
        ("{{if gt 12345678901 1_000_000}}{{1e3}} {{0x1F}} {{017}} {{+1}} {{.5}} {{3.0}}{{end}}", "1000 31 15 1 0.5 3"),
        ("{{9223372036854775808}}", None),
        ("{{1e999}}", None),
        ("{{12ab}}", None),
        (r"""{{"\x41\101\u00e9\"\a"}}""", 'AA\u00e9"\a'),
        (r"""{{"\ud800"}}""", None),
        (r"""{{"\d"}}""", None),
        ('{{/* " */}}x{{/* ` }} {{.Os}} */}}y', "xy"),
        ("{{/*a*//*b*/}}", None),
        ("a }} b", "a }} b"),
        ("{{.Labels.none}}|{{.Config.Labels.none}}|{{json .Labels.none}}", "||null"),
        ("{{.Labels.A_B}}", ""),
        ('{{if index .Ports.ExposedPorts "80/tcp"}}open{{end}}', "open"),
        ("{{range $port, $rest := .Ports.ExposedPorts}}{{if $rest}}{{$port}}{{json $rest}}{{end}}{{end}}", "80/tcp{}"),
        ('{{eq .Config.User ""}}{{ne .Config.User ""}}', "truefalse"),
        ('{{printf "%05s|%x|%q|%b|%c|%U" .Id .Id .Names 5 65 65}}', '00abc|616263|["a" "b"]|101|A|U+0041'),
        ('{{printf "%.1f|%t" 1.25 true}}', "1.2|true"),
        ('{{printf "%٣d" 5}}', None),
        ('{{title "hello wORLD it\'s"}}', "Hello WORLD It's"),
        ('{{html "<a>"}}{{urlquery "a b&"}}', "&lt;a&gt;a+b%26"),
        ("{{$y}}", None),
        ("{{.Id | .Names}}", None),
        ("{{(((((((((1)))))))))}}", "1"),
        ("{{NaN}}", None),
        ("{{.Id", None),
        ("{{}}", None),
        ("{{.Id |}}", None),
        ("{{nonsense .Id}}", None),
        ("{{join .Names}}", None),
        ("{{..}}", None),
        ("{{.None}}", None),
        ("{{.Id.Inner}}", None),
        ("{{index .Names 0}}", "a"),
        ("{{index .Names 1 | upper}}", "B"),
        ("{{len .Names}}", "2"),
        ('{{index .Labels "a.b"}}|{{index .Labels "none"}}', "c|"),
        ("{{index .Names 2}}", None),
        ("{{index .Names}}{{print}}", "[a b]"),
        ('{{index .Names "a"}}', None),
        ("{{len 5}}", None),
        ('{{index .Config.Labels "a"}}{{len .Config.Cmd}}', "0"),
        ("{{.Config.Nonsense}}", None),
        ("{{index .Names 0000000000}}{{index .Names 0x1}}", "ab"),
        ("{{index .Names 99999999999}}", None),
        ("{{.Names 0}}", None),
    ],
)
def test_template(template: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(click.UsageError):
            Template(template).render(DATA)
    else:
        assert Template(template).render(DATA) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{if true}}" * 5000,
        "{{if true}}" * 5000 + "{{end}}" * 5000,
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{{1" + "|print" * 5000 + "}}",
        "{{if false}}" + "{{else if false}}" * 5000 + "{{end}}",
        "{{x" * 40_000,
        '{{"' * 40_000,
        "{{`" * 40_001,
        "{{/*" * 30_000,
        "{{- " * 30_000,
        '{{$x := "aaaaaaaaaa"}}' + "{{$x = print $x $x}}" * 40,
        '{{$x := "aaaaaaaaaa"}}' + '{{$x = join (split $x "") $x}}' * 3,
    ],
    ids=range(12),
)
def test_hostile_templates_are_refused(template: str) -> None:
    with pytest.raises(click.UsageError):
        Template(template).render(DATA)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{range .}}{{.Id}};{{end}}", "abc;abc;"),
        (" {{- range $row := . -}} {{$row.Id}};{{end}}", "abc;abc;"),
        ("{{range $i,$row:=.}}{{$i}}{{$row.Id}};{{end}}", "0abc;1abc;"),
    ],
)
def test_a_template_for_the_whole_list(template: str, written: str) -> None:
    assert Template(template).of_list
    assert Template(template).render([DATA, DATA]) == written


@pytest.mark.parametrize("template", ["{{range .Names}}{{end}}", "{{range $name := .Names}}{{end}}"])
def test_a_template_for_each_row(template: str) -> None:
    assert not Template(template).of_list


@pytest.mark.parametrize(
    ("template", "heads"),
    [
        ("{{.Repository}}:{{.Tag}}\\t{{.ID}}", "REPOSITORY:TAG\tIMAGE ID"),
        ("{{.ID}}\\tfixed\\t{{.Tag}}", "IMAGE ID\tfixed\tTAG"),
        ("{{with .Repository}}{{.}}{{end}}\\t{{$x := .ID}}{{$x}}", "REPOSITORY\tIMAGE ID"),
        ("{{upper .CreatedAt}} {{json .Labels.a}} {{.Tag | truncate 3}}", "CREATED AT\tLABELS\tTAG"),
        ('{{if eq .Tag "x"}}{{.Tag}}{{end}}{{.ID}}', "IMAGE ID"),
        ('{{printf "%d" .Size}}{{if gt .Size 100}}{{.ID}}{{end}}', "SIZE"),
        ('{{json .}}{{len .}}{{index . "ID"}}', '{"ID":"IMAGE ID"}1IMAGE ID'),
        ("{{range .}}{{.ID}}{{end}}", "IMAGE ID"),
    ],
)
def test_heads(template: str, heads: str) -> None:
    assert Template(template, table=True).heads({"ID": "IMAGE ID"}) == heads


def test_heads_are_the_template_with_heads_for_fields() -> None:
    template = Template(
        "{{.ID}}\\t{{.Name}} {{.Size}}\\t-\\t{{if .Tag}}{{.Tag}}{{end}}{{range .Layers}}{{.Id}}{{end}}{{$.Digest}}"
    )
    assert template.heads({"ID": "IMAGE ID", "Size": "BYTES"}) == "IMAGE ID\tNAME BYTES\t-\tTAGLAYERSDIGEST"


def test_places(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/ignored")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    assert Settings().place() == ("/home/u/.local/share/layerfs", None)
    assert "there is no XDG_RUNTIME_DIR" in capsys.readouterr().err
    status = os.stat
    monkeypatch.setattr(
        os,
        "stat",
        lambda path, **options: (
            Mock(st_uid=4_000_000_000) if path == "/run/user/4000000000" else status(path, **options)
        ),
    )
    assert Settings().place() == ("/home/u/.local/share/layerfs", "/run/user/4000000000/layerfs")
    monkeypatch.setattr(os, "stat", status)
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(click.UsageError, match="--root"):
        Settings().place()
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert Settings().place() == ("/data/layerfs", "/run/user/1000/layerfs")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Settings().place() == ("/var/lib/layerfs", "/run/layerfs")
    assert Settings(root="/x").place() == ("/x", None)
    assert Settings(root="/x", runroot="/y").place() == ("/x", "/y")
    assert capsys.readouterr().err == ""


def test_flags_before_and_after_the_verb(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from layerfs_cli.program import program

    env = {"LAYERFS_ROOT": str(tmp_path / "env"), "LAYERFS_RUNROOT": None}
    for words, root, source in (
        (["info"], "env", "environment"),
        (["--root", str(tmp_path / "before"), "info"], "before", "flag"),
        (["info", "--root", str(tmp_path / "after")], "after", "flag"),
        (["--root", str(tmp_path / "before"), "info", "--root", str(tmp_path / "after")], "after", "flag"),
    ):
        result = CliRunner().invoke(program, [*words, "--format", "json"], env=env)
        document = json.loads(result.stdout)
        assert (document["root"], document["root_source"]) == (str(tmp_path / root), source)
        assert document["runroot"] == str(tmp_path / root / "run")


def test_no_sync_reaches_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerfs.api import Store
    from layerfs_cli.program import program

    seen = []
    real = Store.open.__func__  # type: ignore[attr-defined]

    def spy(cls: type[Store], root: str, /, **options: object) -> Store:
        seen.append(options["sync"])
        store: Store = real(cls, root, **options)
        return store

    monkeypatch.setattr(Store, "open", classmethod(spy))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO()))
    for words in (["images"], ["--no-sync", "images"], ["images", "--no-sync"]):
        with pytest.raises(SystemExit):
            program.main(["--root", str(tmp_path / "s"), *words])
    assert seen == [True, False, False]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a {{- .X -}} b", "a1b"), ("a {{ .X }} b", "a 1 b"), ("a\n {{- .X }}", "a1"), ("{{.X -}} \n b", "1b")],
)
def test_a_dash_takes_white_space_away(text: str, shown: str) -> None:
    assert Template(text).render({"X": 1}) == shown
