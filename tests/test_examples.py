"""Every example runs, as its first lines say."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ptools.cli import main

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    done = subprocess.run([sys.executable, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_in_its_docstring(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = [line.strip() for line in path.read_text().splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("ptools ")]
    assert commands
    for command in commands:
        assert main(command) == 0


def test_the_examples_of_every_help_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptools.cli.app import group

    monkeypatch.chdir(ROOT)
    for command in group.commands.values():
        lines = [line.strip() for line in (command.epilog or "").splitlines()]
        examples = [line for line in lines if line.startswith("ptools ")]
        assert len(examples) == 2
        for example in examples:
            assert main(shlex.split(example)[1:]) == 0
