"""What a forward did, as values and operations: both provers write it, the algebra reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

SMALL = 1 << 17  # elements of the largest computed constant that is kept
Site = tuple[str, int]  # file and line


@dataclass(eq=False, slots=True)
class Value:
    """One tensor at one moment: what an in-place operation leaves is another value.

    `weight` is the name of the parameter or buffer that it is. A value that depends on weights
    alone is `constant`; `weights` names them, and `data` holds it unless it is large.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    weight: str | None = None
    constant: bool = False
    weights: frozenset[str] = frozenset()
    data: torch.Tensor | None = None


@dataclass(eq=False, slots=True)
class Op:
    """One ATen operation. `arguments` are by the names of its schema, a Value for each tensor."""

    name: str
    index: int
    arguments: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def output(self) -> Value:
        """The first of the outputs, which is the only one that matters here."""
        return self.outputs[0]


@dataclass(eq=False, slots=True)
class ModuleCall:
    """One call of a module: its operations are those from index `start` up to `end`."""

    name: str
    start: int
    end: int
    output: Value | None
    sites: frozenset[Site]

    def holds(self, op: Op) -> bool:
        """Whether the operation ran within the call."""
        return self.start <= op.index < self.end


@dataclass
class Trace:
    """A forward's operations in order, and (observed only) its modules' calls.

    `returned` is all that is left of it outside: what it returned, what a hook or an attribute
    kept, what Python read. `deciding` names the modules whose own code read a number off the data,
    and so may do something else with other data.
    """

    ops: list[Op]
    returned: set[Value]
    calls: list[ModuleCall] = field(default_factory=list)
    deciding: set[str] = field(default_factory=set)
    users: dict[Value, list[Op]] = field(default_factory=lambda: defaultdict(list))
    producer: dict[Value, Op] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                self.users[value].append(op)
            for value in op.outputs:
                self.producer.setdefault(value, op)

    def is_private(self, value: Value) -> bool:
        """Whether one operation alone ever sees the value."""
        return len(self.users[value]) == 1 and value not in self.returned

    def innermost(self, op: Op) -> ModuleCall | None:
        """The call within which an operation ran."""
        around = (call for call in self.calls if call.holds(op))
        return max(around, key=lambda call: (call.start, -call.end), default=None)

    def within(self, call: ModuleCall) -> Sequence[Op]:
        """The operations of a call that depend on its input."""
        return [op for op in self.ops[call.start : call.end] if not op.output.constant]


def by_name(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an ATen call by the names of its schema, in order, defaults filled in."""
    if getattr(func, "_schema", None) is None:  # a higher-order operator
        return {str(i): arg for i, arg in enumerate(args)} | kwargs
    named = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            named[argument.name] = args[i]
        elif argument.name in kwargs or argument.has_default_value():
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named
