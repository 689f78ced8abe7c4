"""Find the activations that may write over their input, because nobody else reads it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ptools.fusion.callsites import unproven
from ptools.fusion.observe import observe
from ptools.fusion.options import ACTIVATIONS, InplaceRelu
from ptools.fusion.trace import ModuleCall, Op, Trace, Value
from ptools.fusion.trials import Trial


def inplace_activations(model: nn.Module, tries: Sequence[Trial]) -> InplaceRelu:
    """The activations that can work in place: nobody else reads their input, in any trial."""
    names = {
        name
        for name, module in model.named_modules()
        if isinstance(module, ACTIVATIONS) and not getattr(module, "inplace", True)
    }
    for trial in tries:
        names &= _overwritable(model, trial, names)
    return InplaceRelu(tuple(name for name, _ in model.named_modules() if name in names))


def _overwritable(model: nn.Module, trial: Trial, names: set[str]) -> set[str]:
    """Those of the modules that ran, and of which every call may lose its input."""
    storages: dict[Op, StorageWeakRef] = {}

    def watch(op: Op, read: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        if read and read[0].layout is torch.strided:
            storages[op] = StorageWeakRef(read[0].untyped_storage())

    trace, _result = observe(model, trial.args, trial.kwargs, watch)
    calls: dict[str, list[ModuleCall]] = defaultdict(list)
    for call in trace.calls:
        calls[call.name].append(call)

    def loses_nothing(call: ModuleCall) -> bool:
        ops = trace.ops[call.start : call.end]
        if len(ops) != 1 or len(ops[0].inputs) != 1 or ops[0] not in storages:
            return False
        # A storage that lives on is in the output, in an attribute, or with a hook.
        return _is_scratch(ops[0].inputs[0], trace) and storages[ops[0]].expired()

    return {
        name
        for name in names
        if calls[name] and all(map(loses_nothing, calls[name]))
        if unproven(model, (name,), trace) is None
    }


def _is_scratch(value: Value, trace: Trace) -> bool:
    """Whether memory that the forward itself made holds the value, for one reader alone."""
    while trace.is_private(value) and not value.constant and value in trace.producer:
        op = trace.producer[value]
        if not _may_alias(op):
            return True
        value, shape = op.inputs[0], value.shape
        if math.prod(value.shape) != math.prod(shape):  # a part, or one element many times
            return False
    return False


def _may_alias(op: Op) -> bool:
    """Whether what an operation returns can lie in the memory of its input."""
    namespace, _, name = op.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if packet is None or name.startswith("_unsafe_view"):  # a view, though its schema denies it
        return True
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any(
        returned.alias_info is not None
        for schema in schemas
        if not any(argument.is_out for argument in schema.arguments)
        for returned in schema.returns
    )
