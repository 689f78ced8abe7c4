"""What the README shows is what happens."""

import re
import shlex
from pathlib import Path

import pytest

from ptools.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SESSIONS = re.findall(r"```\n\$ (ptools .*)\n((?:.|\n)*?)```", README)


@pytest.mark.parametrize(("command", "output"), SESSIONS, ids=[command for command, _ in SESSIONS])
def test_a_session(command, output, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == output


def test_there_are_sessions():
    assert len(SESSIONS) >= 2


def test_ci_installs_and_tests_as_the_readme_says():
    (install,) = re.findall(r"^(pip install .*) && pytest$", README, re.MULTILINE)
    script = " ".join((ROOT / ".ci/run").read_text().replace("\\\n", " ").split())
    packages = install.removeprefix("pip install ")
    assert re.search(rf"python -m pip install [-\w ]*{re.escape(packages)}", script)
    assert "python -m pytest" in script


def test_every_command_is_in_the_table():
    from ptools.cli.app import group

    for name in group.commands:
        assert f"| `ptools {name}" in README
