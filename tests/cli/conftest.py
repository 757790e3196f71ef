"""A command line with a store of its own, inside this process or as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from layerfs_cli.program import program
from tests.cli.archive import Built

#: What a load says about a layer that is finished.
LAYER_LINE = re.compile(r"\S+: (Load complete|Already exists)")


class Shell:
    """Runs verbs on one store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {"LAYERFS_ROOT": str(directory / "store"), "LAYERFS_RUNROOT": str(directory / "run")}
        self._unset: dict[str, str | None] = dict.fromkeys(
            ("LAYERFS_BACKEND", "LAYERFS_LOG_LEVEL", "DOCKER_DEFAULT_PLATFORM", "NO_COLOR")
        )

    def try_(self, *words: str) -> Result:
        """Run a verb that may fail."""
        return CliRunner().invoke(program, words, prog_name="layerfs", env={**self._unset, **self.env})

    def __call__(self, *words: str) -> str:
        """Run a verb that shall not fail; return what it prints."""
        result = self.try_(*words)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words))

    def fails(self, code: int, *words: str) -> str:
        """Run a verb that shall fail with one line and perhaps a hint; return the line."""
        result = self.try_(*words)
        assert result.exit_code == code, (result.stdout, result.stderr)
        lines = [line for line in result.stderr.splitlines() if not LAYER_LINE.match(line)]
        assert lines, "an error is said"
        assert lines[0].startswith("layerfs: error: ")
        assert all(line.startswith("layerfs: hint: ") for line in lines[1:])
        assert len(lines) <= 2
        return result.stderr

    def process(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the real program."""
        return subprocess.Popen(
            # Whoever runs the tests in the background may have made them ignore interrupts.
            [
                "env", "--default-signal=INT,TERM,HUP", sys.executable, "-c",
                "from layerfs_cli.main import main; main()", *words,
            ],
            env={**os.environ, **self.env}, **options,
        )  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def image(shell: Shell, tmp_path: Path) -> Built:
    """An image in the store."""
    built = Built()
    shell("load", "-q", "-i", str(built.docker_archive(tmp_path / "image.tar")))
    return built


@pytest.fixture
def target(shell: Shell, tmp_path: Path) -> Iterator[Path]:
    """A directory to mount at; nothing stays mounted."""
    path = tmp_path / "target"
    path.mkdir()
    yield path
    shell.try_("umount", "--all", "--lazy")
