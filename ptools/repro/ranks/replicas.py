"""What DistributedDataParallel holds alike on all ranks: the parameters, after each step.

Buffers are not: DDP broadcasts them before a forward, which then changes them on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ptools.program.clock import held_by
from ptools.program.modules import Modules
from ptools.repro.events import ADDED, OUTSIDE, Value
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.leaves import told


def replicas(
    optimizers: Sequence[torch.optim.Optimizer], modules: Modules, digester: Digester
) -> list[Value]:
    """A value for each parameter that is trained beside DDP or in it; none without DDP."""
    wrappers = list(_over_all_ranks(modules))
    if not wrappers:
        return []
    held = {id(one): (one, OUTSIDE) for owner in optimizers for one in held_by(owner)}
    for wrapper in wrappers:
        held |= {id(one): (one, ADDED) for one in wrapper.module.parameters()}
    for wrapper in wrappers:
        held |= {id(one): (one, "") for one in wrapper._module_parameters}
        left_out = wrapper.parameters_to_ignore
        for name, one in wrapper.module.named_parameters():
            if name in left_out:
                held.pop(id(one), None)
    return [
        Value(f"{_name(one, modules)}{why}", told(one), digester.of(one))
        for one, why in held.values()
        if type(one) is nn.Parameter and one.requires_grad
    ]


def _over_all_ranks(modules: Modules) -> Iterator[DistributedDataParallel]:
    for root in modules.roots():
        for module in root.modules():
            if isinstance(module, DistributedDataParallel):
                group = torch.distributed.get_world_size(module.process_group)
                if group == torch.distributed.get_world_size():
                    yield module


def _name(parameter: torch.Tensor, modules: Modules) -> str:
    return modules.parameter_name(parameter) or f"a parameter {tuple(parameter.shape)}"
