"""Every example runs, as its first lines say."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptools.cli import main
from ptools.cli.app import commands_of, group

sys.path.insert(0, str(Path(__file__).parent))
from warm import Warm

ROOT = Path(__file__).parents[1]
COMMANDS = commands_of(group)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Sessions of the README, whose test runs them.
SHOWN = re.findall(r"^```\n\$ (ptools .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
# What finds something in its example, and the exit code that says so.
FOUND = {"ptools debug": 3, "ptools repro examples/repro.py": 3}


def shown(*commands: str) -> list[str]:
    """The examples on the help pages of commands."""
    texts = [COMMANDS[command].epilog or "" for command in commands]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line.startswith("ptools ")]


def code_of(command: str) -> int:
    """The exit code that is right for a command."""
    words = command.split()
    return FOUND.get(command, FOUND.get(" ".join(words[:2]), 0))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs programs that start in milliseconds."""
    pytest.importorskip("torch")
    runner = Warm(tmp_path_factory.mktemp("warm"), "ptools.repro.child")
    yield runner
    runner.close()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, in which commands may write."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execve", run_instead)  # these tests must go on
    return tmp_path


def run_instead(file: str, words: list[str], environment: dict[str, str]) -> None:
    """Run a program beside this one that is meant to replace it."""
    subprocess.run([file, *words[1:]], env=environment, check=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, workplace: Path, warm: Warm) -> None:
    assert warm.plain(workplace / "examples" / path.name)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_in_its_docstring(path: Path, workplace: Path) -> None:
    lines = [line.strip() for line in path.read_text().splitlines()]
    commands = [line for line in lines if line.startswith("ptools ")]
    assert commands
    if set(commands) <= set(shown(*COMMANDS)):
        return  # they are run as those of the help pages
    for command in commands:
        assert main(shlex.split(command)[1:]) == code_of(command)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name])
def test_the_examples_of_a_help_page(
    command: str, workplace: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(words: Any, variables: Any, quiet: bool) -> Any:
        return warm(words, {**variables, "PYTHONHASHSEED": "0"}, quiet)

    if command == "repro":  # runs its programs many times
        monkeypatch.setattr("ptools.program.process.Processes", lambda *_, **__: again)
    examples = shown(command)
    assert len(examples) == 2
    for example in sorted({*examples} - {*SHOWN}):
        assert main(shlex.split(example)[1:]) == code_of(example)
