"""The tools of `fuse_zoo.py` beside ptools, and what is counted and compared for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NORM = nn.modules.batchnorm._BatchNorm


@dataclass
class Ran(TorchDispatchMode):
    """Counts what a forward runs: convolutions, and batch norms by their statistics."""

    convolutions: int = 0
    norms: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.convolutions += name == "convolution"
        if "batch_norm" in name:
            statistics = args[3]  # input, weight, bias, mean, variance
            if statistics is not None:  # an instance norm has none
                self.norms.add(statistics.data_ptr())
        return func(*args, **(kwargs or {}))


def ran(model: nn.Module, inputs: torch.Tensor) -> Ran:
    with torch.no_grad(), Ran() as counted:
        model(inputs)
    return counted


def error(
    model: nn.Module, other: nn.Module, inputs: torch.Tensor, others: torch.Tensor | None = None
) -> float:
    """The largest difference of an output, over the standard deviation of that output."""
    with torch.no_grad():
        expected = tensors(model(inputs))
        got = tensors(other(inputs if others is None else others))
    if [each.shape for each in expected] != [each.shape for each in got]:
        return float("inf")
    pairs = zip(expected, got, strict=True)
    return max(((a - b).abs().max() / a.std()).nan_to_num(float("inf")).item() for a, b in pairs)


def tensors(output: Any) -> list[torch.Tensor]:
    """Those in an output, in order, in double precision."""
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
    return [leaf.double() for leaf in leaves]


def by_fx(model: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


def by_order(model: nn.Module) -> nn.Module:
    """The rule of mmengine's `fuse_conv_bn`: a batch norm that is defined after a Conv2d folds."""
    model = copy.deepcopy(model)
    for parent in model.modules():
        before: nn.Conv2d | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, NORM) and before is not None:
                before.weight, before.bias = fuse_conv_bn_weights(
                    before.weight,
                    before.bias,
                    child.running_mean,
                    child.running_var,
                    child.eps,
                    child.weight,
                    child.bias,
                )
                setattr(parent, name, nn.Identity())
                before = None
            elif isinstance(child, nn.Conv2d):
                before = child
    return model


def by_timm(model: nn.Module) -> nn.Module:
    """Blocks that have a method of their own to become one convolution, use it."""
    from timm.utils.model import reparameterize_model

    return reparameterize_model(model)


PEERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "FX": by_fx,
    "order rule": by_order,
    "timm": by_timm,
}
