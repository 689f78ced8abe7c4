"""The help pages, as they are read: through a pipe, 80 columns wide, without colour."""

import inspect
import os
import subprocess
import sys

import pytest
from typer.core import TyperArgument, TyperOption

from ptools.cli.app import commands_of, group

HEAVY = {"torch", "numpy", "cv2", "lmdb", "PIL", "tensorboard", "torchinfo"}
COMMANDS = {name: command for name, command in commands_of(group).items() if name}
SCRIPT = """
import sys
from ptools.cli import main
code = main(sys.argv[1:])
print(*(name for name in sys.modules if "." not in name), file=sys.stderr)
sys.exit(code)
"""


def page(*arguments: str) -> tuple[str, set[str]]:
    """The help page, and the top-level modules that were imported to show it."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    call = [sys.executable, "-c", SCRIPT, *arguments, "--help"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=True)
    return done.stdout, set(done.stderr.split())


def words(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_page(command: str) -> None:
    text, modules = page(*command.split())
    assert not modules & HEAVY
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80

    made = COMMANDS[command]
    docstring = inspect.cleandoc(made.help or "")
    assert text.splitlines()[2].strip() == docstring.splitlines()[0]
    assert words(docstring) in words(text)
    for parameter in made.params:
        assert isinstance(parameter, TyperOption | TyperArgument)
        assert parameter.help, f"{parameter.name} is not explained"
        assert words(parameter.help) in words(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_page_ends_with_two_examples(command: str) -> None:
    *_, first, second = page(*command.split())[0].splitlines()
    for example in (first, second):
        assert example.strip().startswith(f"ptools {command} ")


def test_the_root_page() -> None:
    text, modules = page()
    assert not modules & HEAVY
    assert max(map(len, text.splitlines())) <= 80
    assert "[tool.ptools.summary]" in text
    for name, command in group.commands.items():
        first = inspect.cleandoc(command.help or "").splitlines()[0]
        assert f"{name} {first}" in words(text), "the first line is cut: make it shorter"


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_called_by_their_long_name_in_the_environment(command: str) -> None:
    """PTOOLS_<COMMAND>_<OPTION> comes from the parameter's name, so the two must agree."""
    for option in COMMANDS[command].params:
        if isinstance(option, TyperOption) and option.allow_from_autoenv:
            assert f"--{option.name.replace('_', '-')}" in option.opts
