"""What to write instead, by the kind of change. Nothing of torch is imported here."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ptools.program.places import Place

BACKWARD_TWICE = "Trying to backward through the graph a second time"

# What torch says of the same family of mistakes, at the line that makes them.
_ERRORS = {
    BACKWARD_TWICE: "detach what is carried from one step to the next (h = h.detach()), compute "
    "the loss anew, or, if both are meant, give the first backward retain_graph=True",
    "a leaf Variable that requires grad is being used in an in-place operation": "change a "
    "parameter under torch.no_grad(), or compute with a changed copy: y = x + 1",
    "a view of a leaf Variable that requires grad is being used in an in-place operation": "fill "
    "the parameter under torch.no_grad(), or fill a clone of it",
    "is a view and is being modified inplace": "clone the part before changing it, or use the "
    "operation that returns a new tensor: the parts that unbind, split and chunk return, and views "
    "made under no_grad, cannot be changed in place",
}


def of_error(text: str) -> str | None:
    """What to do about an error of torch's that concerns a change in place; None for others."""
    return next((advice for error, advice in _ERRORS.items() if error in text), None)


@dataclass(frozen=True)
class Change:
    """A change of a tensor that backward needs.

    Args:
        op: The operation's name without its namespace; empty if none was seen.
        place: Its line.
        module: The path of the module that has `inplace=True` and did it; else empty.
        optimizer: The type of the optimizer whose step did it; else empty.
        tensor: `parameter`, `buffer`, or empty for any other tensor.
        seen: Whether torch sees it.
    """

    op: str
    place: Place | None
    module: str = ""
    optimizer: str = ""
    tensor: str = ""
    seen: bool = True


def of_change(change: Change) -> str:
    """What to write instead."""
    if not change.op:
        return _unknown(change)
    if change.optimizer:
        return (
            "call every backward before the optimizer's step, or compute the loss again after it; "
            "detach what is carried from one step to the next"
        )
    if change.op == "embedding_renorm_":
        return (
            "max_norm rewrites the weight at each look-up: use a clone wherever else the weight is "
            "needed (weight.clone()), or do all look-ups in one call"
        )
    if change.tensor == "buffer":
        return (
            "keep a buffer as it is until the backward, or use a clone of it in forward; under "
            "DistributedDataParallel: broadcast_buffers=False, SyncBatchNorm, or one forward of "
            "both batches together"
        )
    if change.module:
        return f"set inplace=False in {change.module}"
    return _written_anew(change)


def _unknown(change: Change) -> str:
    if change.seen:
        return "change a copy, made with clone(), or wait for the backward"
    return "give torch memory of its own: torch.tensor(array), or array.copy(), for from_numpy"


def _written_anew(change: Change) -> str:
    source = change.place.source if change.place else ""
    statement = _statement(source)
    if change.tensor == "parameter":
        return "change a parameter after the backward, under torch.no_grad()"
    if not change.seen:
        return "change a copy, x.detach().clone(), or wait for the backward"
    if _is_part(statement):
        if change.op in ("index_put_", "masked_fill_"):
            return "choose with torch.where(mask, new, x), or change a clone: x = x.clone()"
        return (
            "change a clone (x = x.clone()), or make the parts first and join them with "
            "torch.stack or torch.cat"
        )
    if isinstance(statement, ast.AugAssign):
        return f"write {ast.unparse(_spelt_out(statement))}"
    if "inplace=True" in source.replace(" ", ""):
        return "leave out inplace=True"
    if "out=" in source.replace(" ", ""):
        return "leave out out=, which fills a tensor that backward still needs"
    if change.op.endswith("_") and f".{change.op}(" in source:
        return f"use .{change.op[:-1]}(...), without the underscore, and go on with its result"
    return "change a copy: x = x.clone()"


def _statement(source: str) -> ast.stmt | None:
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a line of a longer statement
        return None
    return body[0] if len(body) == 1 else None


def _spelt_out(statement: ast.AugAssign) -> ast.Assign:
    """`h = h + y` for `h += y`."""
    result = ast.BinOp(statement.target, statement.op, statement.value)
    return ast.Assign(targets=[statement.target], value=result, lineno=1)


def _is_part(statement: ast.stmt | None) -> bool:
    """Whether a part of a tensor is assigned: x[i] = y."""
    if isinstance(statement, ast.Assign):
        return any(isinstance(target, ast.Subscript) for target in statement.targets)
    return isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Subscript)
