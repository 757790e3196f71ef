"""Help texts, start-up, versions, completion. Run this module to write the golden help texts anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from layerfs_cli.catalog import ALIASES, VERBS
from layerfs_cli.program import program
from tests.cli.archive import Built
from tests.cli.conftest import Shell

GOLDEN = Path(__file__).parent / "golden"

#: What must not be imported before a verb needs it.
HEAVY = {"layerfs.api", "sqlite3", "rich", "trio", "logging", "importlib.metadata", "layerfs.store", "layerfs.mount"}


def help_text(*words: str) -> str:
    result = CliRunner().invoke(program, [*words, "--help"], prog_name="layerfs", terminal_width=80)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_text(verb: str) -> None:
    expected = (GOLDEN / f"{verb or 'layerfs'}.txt").read_text()
    assert help_text(*verb.split()) == expected, "write them anew with: python -m tests.cli.test_help"


@pytest.mark.parametrize("verb", VERBS)
def test_catalog_says_what_the_verb_says(verb: str) -> None:
    command = program.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None
    assert command.name == verb
    assert command.short_help == VERBS[verb]
    assert not command.hidden
    assert VERBS[verb].endswith(".")


@pytest.mark.parametrize("verb", [*VERBS, *ALIASES])
def test_short_help_flag(verb: str, shell: Shell) -> None:
    assert shell(verb, "-h").startswith(f"Usage: layerfs {verb} ")


@pytest.mark.parametrize("words", [["--help"], ["load", "--help"], ["bogus"]])
def test_starts_without_the_library(words: list[str]) -> None:
    script = (
        "import sys\nfrom layerfs_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('\\n'.join(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True, text=True)
    assert not HEAVY & set(run.stdout.splitlines())


def test_version_starts_without_the_library() -> None:
    script = (
        "import sys\nfrom layerfs_cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script, "--version"], check=True, capture_output=True, text=True)
    first, modules = run.stdout.splitlines()
    assert first.split()[0] == "layerfs"
    assert not (HEAVY - {"importlib.metadata"}) & set(modules.split())


def test_version(shell: Shell) -> None:
    document = shell.json("version", "--format", "json")
    assert shell("--version") == f"layerfs {document['Version']}\n"
    assert set(document) == {"Version", "StoreFormat", "Python", "Kernel", "OsArch"}


def test_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "layerfs_cli", "tag", "-h"], check=True, capture_output=True, text=True)
    assert run.stdout.startswith("Usage: layerfs tag ")


def test_no_arguments_shows_help_as_an_error(shell: Shell) -> None:
    result = shell.try_()
    assert result.exit_code == 2
    assert "Usage: layerfs" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_script(shell: Shell, name: str) -> None:
    script = shell("completion", name)
    assert f"_LAYERFS_COMPLETE={name}_complete" in script


def complete(shell: Shell, *words: str) -> list[str]:
    result = CliRunner().invoke(
        program, [], prog_name="layerfs",
        env={
            **shell.env,
            "_LAYERFS_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["layerfs", *words]),
            "COMP_CWORD": str(len(words)),
        },
    )  # fmt: skip
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_completes_names(shell: Shell, image: Built) -> None:
    shell("tag", image.id, "local")
    assert complete(shell, "mo") == ["mount"]
    assert sorted(complete(shell, "inspect", "")) == ["example.org/team/app:1.0", "local:latest"]
    assert complete(shell, "inspect", "ex") == ["example.org/team/app:1.0"]
    assert complete(shell, "rmi", "loc") == ["local:latest"]
    assert complete(shell, "inspect", "docker.io/lib") == ["docker.io/library/local:latest"]
    assert "--read-only" in complete(shell, "mount", "--r")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("layerfs inspect example.org:5000/team/app:", ["1.0"]),
        ("layerfs inspect example.org:5", ["5000/team/app:1.0"]),
        ("layerfs inspect exam", ["example.org/team/app:1.0", "example.org:5000/team/app:1.0"]),
        ("layerfs inspect other ", ["example.org/team/app:1.0", "example.org:5000/team/app:1.0"]),
        ("layerfs  mo", ["mount"]),
        ("layerfs rebase --onto=example.org:5000/team/app:", ["1.0"]),
    ],
)
def test_bash_ends_words_at_colons(shell: Shell, image: Built, tmp_path: Path, line: str, found: list[str]) -> None:
    shell("tag", image.id, "example.org:5000/team/app:1.0")
    (tmp_path / "script").write_text(shell("completion", "bash"))
    (tmp_path / "layerfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m layerfs_cli "$@"\n')
    (tmp_path / "layerfs").chmod(0o755)
    words = line.replace(":", " : ").split() + ([""] if line[-1] in " :" else [])
    program = (
        f"source {tmp_path}/script\nCOMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({' '.join(words)})\n"
        f"COMP_CWORD={len(words) - 1}\n_layerfs_completion layerfs\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    env = {**shell.env, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "--norc", "-c", program], env=env, check=True, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == found


def test_completion_makes_no_store(shell: Shell) -> None:
    assert complete(shell, "inspect", "x") == []
    assert not Path(shell.env["LAYERFS_ROOT"]).exists()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in ["", *VERBS]:
        (GOLDEN / f"{each or 'layerfs'}.txt").write_text(help_text(*each.split()))
