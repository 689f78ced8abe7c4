"""Options from the nearest pyproject.toml: `[tool.ptools.<command>]`, between flag and default.

Typer itself reads the environment (`PTOOLS_<COMMAND>_<OPTION>`), which comes before the file.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from typer.core import TyperOption

from ptools.errors import UsageError
from ptools.files import nearest_project

PREFIX = "PTOOLS"


class Command(Protocol):
    """What is needed of a command: its parameters. One with `commands` of its own has no others."""

    @property
    def params(self) -> Iterable[object]: ...


def load(commands: Mapping[str, Command]) -> dict[str, Any]:
    """Read the defaults of each command, by parameter name.

    Raises:
        UsageError: the file cannot be read, or has a table or a key that no command knows.
    """
    file = nearest_project()
    if file is None:
        return {}
    return _commands(_tables(file), commands, f"{file}: [tool.ptools")


def _tables(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error
    tables = document.get("tool", {}).get("ptools", {})
    return tables if isinstance(tables, dict) else {"": tables}


def _commands(
    tables: Mapping[str, Any], commands: Mapping[str, Command], place: str
) -> dict[str, Any]:
    values = {}
    for name, table in tables.items():
        if name not in commands:
            hint = _did_you_mean(name, commands)
            raise UsageError(f"{place}.{name}] names no command", hint)
        inner = getattr(commands[name], "commands", None)
        if inner is not None and isinstance(table, dict):
            values[name] = _commands(table, inner, f"{place}.{name}")
        else:
            values[name] = _options(table, commands[name], f"{place}.{name}]")
    return values


def _options(table: object, command: Command, place: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{place} is no table", hint="write the command's options under it")
    known = _keys(command)
    values = {}
    for key, value in table.items():
        name = known.get(key.replace("-", "_"))
        if name is None:
            raise UsageError(f"{place} has no option {key!r}", hint=_did_you_mean(key, known))
        values[name] = value
    return values


def _keys(command: Command) -> dict[str, str]:
    """The long option names, in snake case, to the names of their parameters."""
    return {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in command.params
        # What may not come from the environment belongs to one call, not to a project.
        if isinstance(parameter, TyperOption) and parameter.allow_from_autoenv
        for option in parameter.opts
        if option.startswith("--")
    }


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
