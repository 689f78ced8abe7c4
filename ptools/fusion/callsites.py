"""Calls that stand in a model's code, but did not run: what was observed says nothing of them.

`return self.conv(x)` in a branch that was not taken makes a fold of `self.bn(self.conv(x))`
unproven. Methods that the forward never reaches count as well, since someone may call them.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

from ptools.fusion.syntax import Call, calls_in, is_same, names_read, names_stored, never_runs
from ptools.fusion.trace import Site, Trace
from ptools.source import is_users

_Touched = frozenset[int]  # by id


def unproven(model: nn.Module, names: Sequence[str], trace: Trace) -> str | None:
    """Why a change of the modules `names` does not follow from one observed forward.

    Looks in the methods of every module that holds some of them; None also where there is no
    source to read.
    """
    touched = {id(model.get_submodule(name)) for name in names}
    within: dict[int, _Touched] = {}
    _note_touched(model, touched, within)
    sites = _Sites(model, names, trace)
    for holder in model.modules():
        if within[id(holder)]:
            problem = _Methods(holder, within, frozenset(touched), sites).problem()
            if problem is not None:
                return problem
    return None


def _note_touched(module: nn.Module, touched: set[int], within: dict[int, _Touched]) -> _Touched:
    """Which of the touched modules each module is or holds."""
    if id(module) not in within:
        inner = (_note_touched(child, touched, within) for child in module.children())
        within[id(module)] = frozenset({id(module)} & touched).union(*inner)
    return within[id(module)]


class _Sites:
    """Lines from which modules were called."""

    def __init__(self, model: nn.Module, names: Sequence[str], trace: Trace) -> None:
        self._all = {site for call in trace.calls for site in call.sites}
        self._by_module: dict[int, set[Site]] = defaultdict(set)
        for call in trace.calls:
            if call.name in names:
                self._by_module[id(model.get_submodule(call.name))].update(call.sites)

    def has(self, call: Call, hit: _Touched) -> bool:
        """Whether a call in the source ran; one of any child if it did for some child."""
        if None in call.path:
            return call.is_at(self._all)
        return any(call.is_at(self._by_module[module]) for module in hit)


class _Methods:
    """The calls in one module's code of touched modules, or of what holds touched ones."""

    def __init__(
        self, holder: nn.Module, within: dict[int, _Touched], touched: _Touched, sites: _Sites
    ) -> None:
        self.holder = holder
        self.within = within
        self.touched = touched
        calls = [(call, hit) for call in self._calls() for hit in self._hits(call)]
        self.ran = [(call, hit) for call, hit in calls if sites.has(call, hit)]
        self.rest = [(call, hit) for call, hit in calls if not sites.has(call, hit)]

    def problem(self) -> str | None:
        """The first call of some of the touched modules, not all, that nothing vouches for."""
        for call, hit in self.rest:
            if hit != self.touched and not self._is_repeated(call):
                return f"{call.place} also calls {call.name}, and did not run"
        for call, hit in self.ran:
            others = (other for other, also in self.ran if other is not call and hit & also)
            if hit != self.touched and call.in_arm and any(map(call.overlaps, others)):
                return f"{call.place} calls {call.name} in one of several ways"
        return None

    def _calls(self) -> Iterator[Call]:
        children = self.holder._modules.keys()
        for method in _methods(type(self.holder).__mro__):
            if not children.isdisjoint(_names_in(method.__code__)):
                for call in _calls_of(method):
                    if not never_runs(call, self.holder):
                        yield call

    def _hits(self, call: Call) -> Iterator[_Touched]:
        for group in _resolved(self.holder, call.path):
            hit = frozenset[int]().union(*(self.within[id(module)] for module in group))
            if hit:
                yield hit

    def _is_repeated(self, call: Call) -> bool:
        """Whether the same statements ran elsewhere, and did all that the change is about."""
        return any(
            body[there] is not block[here]
            and is_same(body[there], block[here])
            and self._does_all(call, (block, here), (body, there))
            for block, here in call.trail
            for other, _ in self.ran
            for body, there in other.trail
        )

    def _does_all(
        self, call: Call, one: tuple[list[ast.stmt], int], two: tuple[list[ast.stmt], int]
    ) -> bool:
        block, body = one[0], two[0]
        before, after = _equal_around(one, two)
        done: list[int] = []
        found: set[int] = set()
        for other, hit in self.ran:
            for each, index in other.trail if hit != self.touched else ():
                if each is body and two[1] - before <= index <= two[1] + after:
                    done.append(index - two[1] + one[1])
                    found |= hit
        if found != self.touched:
            return False
        window = block[min(done) : max(done) + 1]
        kept = names_stored(window[:-1]) - names_stored(window[-1:])
        return not kept & names_read(call.trail[0][0], window)


def _equal_around(
    one: tuple[list[ast.stmt], int], two: tuple[list[ast.stmt], int]
) -> tuple[int, int]:
    """How many statements before and after two equal ones are equal as well."""
    (block, here), (body, there) = one, two
    before = after = 0
    for a, b in zip(reversed(block[:here]), reversed(body[:there]), strict=False):
        if not is_same(a, b):
            break
        before += 1
    for a, b in zip(block[here + 1 :], body[there + 1 :], strict=False):
        if not is_same(a, b):
            break
        after += 1
    return before, after


def _resolved(module: nn.Module, path: tuple[object, ...]) -> Iterator[list[nn.Module]]:
    """The modules that a path leads to; those of a slice together, each where any may be meant."""
    if not path:
        yield [module]
        return
    step, rest = path[0], path[1:]
    children = [child for child in module._modules.values() if child is not None]
    if isinstance(step, slice) and not rest:
        yield children[step]
    elif isinstance(step, str):
        child = module._modules.get(step)
        if child is not None:
            yield from _resolved(child, rest)
    elif isinstance(step, int):
        if -len(children) <= step < len(children):
            yield from _resolved(children[step], rest)
    else:
        for child in children:
            yield from _resolved(child, rest)


@lru_cache(maxsize=4096)
def _methods(order: tuple[type, ...]) -> tuple[FunctionType, ...]:
    """Those that can still be called: overridden ones only where a subclass does so."""
    found: dict[str, list[FunctionType]] = {}
    for base in order:
        for name, member in vars(base).items():
            method = inspect.unwrap(member) if callable(member) else None
            if not isinstance(method, FunctionType) or name == "__init__":
                continue
            if not is_users(method.__code__.co_filename):
                continue
            above = (m for methods in found.values() for m in methods)
            if name not in found or any(_calls_base(m, base, name) for m in above):
                found.setdefault(name, []).append(method)
    return tuple(method for methods in found.values() for method in methods)


def _calls_base(method: FunctionType, base: type, name: str) -> bool:
    names = _names_in(method.__code__)
    return name in names and ("super" in names or base.__name__ in names)


@lru_cache(maxsize=4096)
def _calls_of(method: FunctionType) -> tuple[Call, ...]:
    """The calls of submodules in a method, read from its source."""
    code = method.__code__
    if "fuse" in code.co_name:  # `forward_fuse`: for after its module has been fused
        return ()
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename))
    definition = _definitions(text).get(code.co_firstlineno)
    if definition is None or definition.name != code.co_name:
        return ()  # the file is another one by now
    return tuple(calls_in(definition, code.co_filename))


@lru_cache(maxsize=64)
def _definitions(text: str) -> dict[int, ast.FunctionDef]:
    """The functions of a file by their first line, which is that of the first decorator."""
    try:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    except SyntaxError:
        return {}
    return {min([n.lineno, *(d.lineno for d in n.decorator_list)]): n for n in nodes}


@lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> frozenset[str]:
    """All names that a function uses, also in functions within it."""
    inner = (_names_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(code.co_names).union(*inner)
