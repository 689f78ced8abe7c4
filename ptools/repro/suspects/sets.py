"""Where a program makes sets: the seed of hash() decides in which order they come."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ptools.program.places import Place
from ptools.program.shown import line_of

_MOST = 3
_MADE_BY = {"set", "frozenset"}
_ORDERLESS = {"sorted", "len", "min", "max", "any", "all", "set", "frozenset"}


def sets_in(files: Iterable[str]) -> str:
    """A sentence that names the lines of files which make sets; empty if there are none."""
    made = [Place(file, line, "") for file in dict.fromkeys(files) for line in _lines(file)]
    if not made:
        return ""
    more = [f"{len(made) - _MOST} more"] if made[_MOST:] else []
    told = [*map(line_of, made[:_MOST]), *more]
    listed = " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))
    return f"the hash seed decides the order of the sets that are made at {listed}"


def _lines(file: str) -> list[int]:
    with suppress(OSError, SyntaxError, ValueError):
        tree = ast.parse(Path(file).read_bytes())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.expr)]
        harmless = {id(part) for node in nodes for part in _unordered(node)}
        return sorted({one.lineno for one in nodes if _is_set(one) and id(one) not in harmless})
    return []


def _is_set(node: ast.expr) -> bool:
    return isinstance(node, ast.Set | ast.SetComp) or _calls(node, _MADE_BY)


def _unordered(node: ast.expr) -> Iterator[ast.expr]:
    """The parts of an expression whose order makes no difference to it."""
    if isinstance(node, ast.Compare):
        yield from (node.left, *node.comparators)
    elif isinstance(node, ast.Call) and _calls(node, _ORDERLESS):
        yield from node.args


def _calls(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
