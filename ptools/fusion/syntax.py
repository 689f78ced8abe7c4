"""Which submodules a method's source calls, where, and under what conditions."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ptools.fusion.trace import Site

# An attribute or key, an index, a slice; None for any of the children.
Step = str | int | slice | None
Steps = tuple[Step, ...]
_Names = dict[str, list[Steps]]  # what local names stand for
_NOT_IN_INFERENCE = ("is_scripting", "is_tracing")


@dataclass(frozen=True, eq=False)
class _Way:
    """Statements as (block, index) from the method's own on; the conditions to get there.

    `in_arm`: in a part of an expression that is left out in some cases, which no line tells.
    """

    trail: tuple[tuple[list[ast.stmt], int], ...] = ()
    conditions: tuple[tuple[ast.expr, bool], ...] = ()
    in_arm: bool = False

    def under(self, test: ast.expr, holds: bool) -> _Way:
        return replace(self, conditions=(*self.conditions, (test, holds)))


@dataclass(frozen=True, eq=False)
class Call:
    """`self.path(...)` as it stands in a method."""

    path: Steps
    name: str
    file: str
    lines: range
    way: _Way

    @property
    def trail(self) -> tuple[tuple[list[ast.stmt], int], ...]:
        """The statements around it, as blocks and indices, the method's own block first."""
        return self.way.trail

    @property
    def in_arm(self) -> bool:
        """Whether it is in a part of an expression that need not run, such as `a if b else c`."""
        return self.way.in_arm

    @property
    def place(self) -> str:
        """`model.py:31`."""
        return f"{Path(self.file).name}:{self.lines.start}"

    def is_at(self, sites: set[Site]) -> bool:
        """Whether one of the lines is its own."""
        return any((self.file, line) in sites for line in self.lines)

    def overlaps(self, other: Call) -> bool:
        """Whether lines can't tell the two apart."""
        mine, theirs = self.lines, other.lines
        return self.file == other.file and mine.start < theirs.stop and theirs.start < mine.stop


def calls_in(method: ast.FunctionDef, file: str) -> Iterator[Call]:
    """The calls of what hangs on a method's first argument, which is `self`."""
    arguments = [*method.args.posonlyargs, *method.args.args]
    if not arguments:
        return
    names: _Names = {arguments[0].arg: [()]}
    for node in ast.walk(method):
        _bind(node, names)
    yield from _Reading(file, names).block(method.body, _Way())


def never_runs(call: Call, module: nn.Module) -> bool:
    """Whether inference, with the module as it was built, can't get there."""
    return any(_truth(test, module) is (not holds) for test, holds in call.way.conditions)


def is_same(one: ast.stmt, two: ast.stmt) -> bool:
    """Whether two statements have the same text, but for layout."""
    return type(one) is type(two) and ast.dump(one) == ast.dump(two)


def names_stored(statements: Iterable[ast.stmt]) -> set[str]:
    """Local names that get a value."""
    return {name.id for name in _names(statements) if isinstance(name.ctx, ast.Store)}


def names_read(statements: Iterable[ast.stmt], but: list[ast.stmt]) -> set[str]:
    """Local names that are read, other than in the statements `but`."""
    left_out = set(map(id, _names(but)))
    reads = (name for name in _names(statements) if isinstance(name.ctx, ast.Load))
    return {name.id for name in reads if id(name) not in left_out}


def _names(statements: Iterable[ast.stmt]) -> Iterator[ast.Name]:
    for statement in statements:
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.Name))


class _Reading:
    """A walk through one method."""

    def __init__(self, file: str, names: _Names) -> None:
        self.file = file
        self.names = names
        self.owner = next(iter(names))  # what the method calls `self`

    def block(self, body: list[ast.stmt], way: _Way) -> Iterator[Call]:
        for index, statement in enumerate(body):
            here = replace(way, trail=(*way.trail, (body, index)))
            yield from self._read(statement, here)
            if isinstance(statement, ast.If) and _leaves(statement.body):
                way = way.under(statement.test, False)

    def _read(self, node: ast.AST, way: _Way) -> Iterator[Call]:
        if isinstance(node, ast.Call):
            yield from self._calls(node, way)
        if isinstance(node, ast.If):
            yield from self._read(node.test, way)
            yield from self.block(node.body, way.under(node.test, True))
            yield from self.block(node.orelse, way.under(node.test, False))
        elif isinstance(node, ast.IfExp):
            yield from self._read(node.test, way)
            arm = replace(way, in_arm=True)
            yield from self._read(node.body, arm.under(node.test, True))
            yield from self._read(node.orelse, arm.under(node.test, False))
        elif isinstance(node, ast.BoolOp):
            yield from self._read(node.values[0], way)
            for value in node.values[1:]:
                yield from self._read(value, replace(way, in_arm=True))
        else:
            yield from self._inside(node, way)

    def _inside(self, node: ast.AST, way: _Way) -> Iterator[Call]:
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from self.block(value, way)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.stmt):
                    yield from self._read(child, way)

    def _calls(self, node: ast.Call, way: _Way) -> Iterator[Call]:
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for path in _paths(node.func, self.names):
            path = path[:-1] if path[-1:] == ("forward",) else path
            if path:
                name = ast.unparse(node.func).removeprefix(f"{self.owner}.")
                yield Call(path, name, self.file, lines, way)


def _leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def _paths(node: ast.AST, names: _Names) -> list[Steps]:
    """What an expression such as `self.blocks[0].conv` can lead to."""
    if isinstance(node, ast.Name):
        return names.get(node.id, [])
    if isinstance(node, ast.Attribute):
        return [(*path, node.attr) for path in _paths(node.value, names)]
    if isinstance(node, ast.Subscript):
        return [(*path, _index(node.slice)) for path in _paths(node.value, names)]
    return []


def _index(node: ast.expr) -> Step:
    try:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return slice(*(part and ast.literal_eval(part) for part in parts))
        index = ast.literal_eval(node)
    except ValueError:
        return None
    return index if isinstance(index, int | str) else None


def _bind(node: ast.AST, names: _Names) -> None:
    """`conv = self.conv`, `for conv in self.convs`."""
    if isinstance(node, ast.Assign):
        _name(node.targets[0], _paths(node.value, names), names)
    elif isinstance(node, ast.For | ast.comprehension):
        _bind_items(node.target, node.iter, names)


def _bind_items(target: ast.expr, source: ast.expr, names: _Names) -> None:
    """What a loop over children calls them, also by way of `zip` and `enumerate`."""
    match target, source:
        case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Name(id="enumerate"), args=[items, *_]):
            _bind_items(inner, items, names)
        case ast.Tuple(elts=targets), ast.Call(func=ast.Name(id="zip"), args=sources):
            for each, items in zip(targets, sources, strict=False):
                _bind_items(each, items, names)
        case _:
            _name(target, [(*path, None) for path in _paths(source, names)], names)


def _name(target: ast.expr, paths: list[Steps], names: _Names) -> None:
    if isinstance(target, ast.Name) and paths:
        names.setdefault(target.id, []).extend(path for path in paths if path)


def _truth(test: ast.expr, module: nn.Module) -> bool | None:
    """What a condition comes to in inference; None where that is not settled for good."""
    match test:
        case ast.Constant(value=value):
            return bool(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _truth(operand, module)
            return None if inner is None else not inner
        case ast.BoolOp(op=op, values=values):
            found = [_truth(value, module) for value in values]
            decisive = isinstance(op, ast.Or)
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        case ast.Attribute(value=ast.Name(id="self"), attr="training"):
            return False
        case ast.Call(func=ast.Attribute(attr=name)) if name in _NOT_IN_INFERENCE:
            return False
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(id="self"), attr=name),
            ops=[ast.Is() | ast.IsNot() as op],
            comparators=[ast.Constant(value=None)],
        ) if name in module._modules:
            return (module._modules[name] is None) is isinstance(op, ast.Is)
    return None
