"""Every example runs, as its first lines say."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ptools.cli import main
from ptools.cli.app import commands_of, group

ROOT = Path(__file__).parents[1]
COMMANDS = commands_of(group)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FOUND = {"debug": 3}  # what finds something in its example, and the exit code that says so


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, in which commands may write."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, workplace: Path) -> None:
    call = [sys.executable, workplace / "examples" / path.name]
    done = subprocess.run(call, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_in_its_docstring(path: Path, workplace: Path) -> None:
    lines = [line.strip() for line in path.read_text().splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("ptools ")]
    assert commands
    for command in commands:
        assert main(command) == FOUND.get(command[0], 0)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name])
def test_the_examples_of_a_help_page(command: str, workplace: Path) -> None:
    lines = [line.strip() for line in (COMMANDS[command].epilog or "").splitlines()]
    examples = [line for line in lines if line.startswith("ptools ")]
    assert len(examples) == 2
    for example in examples:
        assert main(shlex.split(example)[1:]) == FOUND.get(command, 0)
