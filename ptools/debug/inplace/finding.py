"""A change of a saved tensor, told: both lines, the tensor, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ptools.debug.findings import Finding
from ptools.debug.inplace.advice import Change, of_change
from ptools.debug.inplace.saved import Saved, address, is_plain
from ptools.debug.inplace.writes import Write
from ptools.program.modules import Modules
from ptools.program.places import Place

SHOWN = 4  # lines that changed the tensor


def finding_of(saved: Saved, node: Any, modules: Modules) -> Finding:
    """The finding that a node's saved tensor is not what it was.

    Args:
        saved: what the node asks for.
        node: the autograd node that is running.
        modules: to name modules and parameters.
    """
    seen = saved.tensor._version != saved.version
    writes = saved.writes()
    changed = _lines(writes, modules)
    place = saved.spot.place(modules)
    name, kind = _name(saved.tensor, modules)
    change = Change(
        op=_short(writes[0]) if writes else "",
        place=changed[0] if changed else None,
        module=_inplace_module(writes[0], modules) if writes else "",
        optimizer=writes[0].optimizer if writes else "",
        tensor=kind,
        seen=seen,
    )
    likewise = "; likewise at the other lines" if len(changed) > 1 else ""
    return Finding(
        kind="inplace" if seen else "inplace-hidden",
        summary=_summary(change, name),
        places=(
            *(("changed", one) for one in changed[:SHOWN]),
            *((("saved", place),) if place else ()),
        ),
        facts=tuple(_facts(saved, node, name, writes, len(changed))),
        advice=of_change(change) + likewise,
        op=writes[0].op if writes else "",
    )


def _summary(change: Change, name: str) -> str:
    who = f"{change.optimizer}'s step" if change.optimizer else change.op or "something"
    what = name or "a tensor"
    if change.seen:
        return f"{who} changed {what} in place, which backward still needs"
    return f"{who} changed {what} unseen by torch: the gradient is silently wrong"


def _facts(saved: Saved, node: Any, name: str, writes: list[Write], lines: int) -> Iterator[str]:
    shape = "x".join(map(str, saved.tensor.shape)) or "scalar"
    dtype = str(saved.tensor.dtype).removeprefix("torch.")
    yield f"{node.name()} needs {name or 'it'} ({shape} {dtype}) as it was when it was saved"
    if lines > SHOWN:
        yield f"changed at {lines - SHOWN} more lines"
    if not writes:
        yield "no operation of torch's changed it: memory shared with NumPy, or native code"
    before = saved.before
    if before is not None and is_plain(saved.tensor) and before.shape == saved.tensor.shape:
        differ = int((saved.tensor.detach() != before).sum())
        yield (
            f"{differ:,} of {before.numel():,} values are not what they were"
            if differ
            else "its values are what they were: torch counts writes to the memory it is part of"
        )


def _lines(writes: list[Write], modules: Modules) -> list[Place]:
    """Each line once, in the order of time."""
    places = (write.spot.place(modules) for write in writes)
    return list(dict.fromkeys(place for place in places if place is not None))


def _short(write: Write) -> str:
    return write.op.partition("::")[2] or write.op


def _inplace_module(write: Write, modules: Modules) -> str:
    """The module that wrote because it was made with inplace=True."""
    module = write.spot.module
    return modules.name(module) if getattr(module, "inplace", False) is True else ""


def _name(tensor: torch.Tensor, modules: Modules) -> tuple[str, str]:
    """A parameter's or buffer's name and which of both it is; also of a view of all of it."""
    for root in modules.roots():
        for kind, tensors in (("parameter", root.parameters()), ("buffer", root.buffers())):
            for one in tensors:
                if one.numel() == tensor.numel() and address(one) == address(tensor):
                    return modules.parameter_name(one), kind
    return "", ""
