"""The changes that fusing makes to a model: plain enough to be saved, and made again elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ptools.errors import PtoolsError
from ptools.fusion.affine import Kernel
from ptools.fusion.options import Option, option_of

METHODS = ("fuse", "reparameterize", "switch_to_deploy")


class Zero(nn.Module):
    """Stands where a branch was that another one now computes: adding it changes nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> int:
        """The number 0, whatever comes in."""
        return 0


@dataclass(frozen=True)
class Fold:
    """One convolution (or Linear) takes on what other modules did.

    `size`, `padding` and `groups` are those of the convolution afterwards; an empty `size` leaves
    them as they are. `replaced` says what
    stands in the place of each module that it took over: nothing (`()`, an Identity), `("0",)`
    where a branch is gone, or those of its children that remain, as an activation.
    """

    conv: str
    size: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    replaced: tuple[tuple[str, tuple[str, ...]], ...]

    def apply(self, model: nn.Module, kernel: Kernel | None = None) -> None:
        """Change the model; the new weights stay uninitialised without `kernel`."""
        conv: Any = model.get_submodule(self.conv)
        weight, bias = kernel or _empty_kernel(conv, self)
        old = conv.weight

        def parameter(tensor: torch.Tensor) -> nn.Parameter:
            placed = tensor.to(device=old.device, dtype=old.dtype, copy=True)
            return nn.Parameter(placed, requires_grad=old.requires_grad)

        if self.size:
            conv.kernel_size, conv.padding, conv.groups = self.size, self.padding, self.groups
        conv.weight, conv.bias = parameter(weight), parameter(bias)
        for name, rest in self.replaced:
            _replace(model, name, rest)

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, strings and numbers."""
        return {
            "conv": self.conv,
            "size": list(self.size),
            "padding": list(self.padding),
            "groups": self.groups,
            "replaced": {name: list(rest) for name, rest in self.replaced},
        }


@dataclass(frozen=True)
class Own:
    """A module's own method that folds it (`fuse`, `reparameterize`, `switch_to_deploy`)."""

    module: str
    method: str

    def apply(self, model: nn.Module, kernel: Kernel | None = None) -> None:
        """Call it in float64; a module that it returns takes the place of the old one."""
        module = model.get_submodule(self.module)
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        with torch.no_grad():
            result = getattr(module.double(), self.method)()
        result = result if isinstance(result, nn.Module) else module
        result.to(dtype).train(module.training)
        if result is not module and self.module:
            _put(model, self.module, result)

    def to_dict(self) -> dict[str, Any]:
        """As plain strings."""
        return {"module": self.module, "method": self.method}


Step = Fold | Own | Option


def step_of(entry: Mapping[str, Any]) -> Step:
    """What `to_dict` made."""
    if (option := option_of(entry)) is not None:
        return option
    if "method" in entry:
        if entry["method"] not in METHODS:
            raise PtoolsError(f"the recipe calls {entry['method']!r}, which is no way to fuse")
        return Own(entry["module"], entry["method"])
    replaced = tuple((name, tuple(rest)) for name, rest in entry["replaced"].items())
    size, padding = tuple(entry["size"]), tuple(entry["padding"])
    return Fold(entry["conv"], size, padding, entry["groups"], replaced)


def own_steps(model: nn.Module) -> list[Own]:
    """The outermost modules that have a method of their own, which takes no arguments."""
    found: list[Own] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{step.module}.") for step in found)
        method = next((method for method in METHODS if _is_callable(module, method)), None)
        if method and name and not inside:
            found.append(Own(name, method))
    return found


def _is_callable(module: nn.Module, name: str) -> bool:
    method = getattr(module, name, None)
    if not inspect.ismethod(method):
        return False
    parameters = inspect.signature(method).parameters.values()
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def _empty_kernel(conv: Any, fold: Fold) -> Kernel:
    old: torch.Tensor = conv.weight
    outs = getattr(conv, "out_channels", old.shape[0])
    if not fold.size:
        return torch.empty(old.shape), torch.empty(outs)
    return torch.empty(outs, conv.in_channels // fold.groups, *fold.size), torch.empty(outs)


def _replace(model: nn.Module, name: str, rest: tuple[str, ...]) -> None:
    """Under each of its names."""
    old = model.get_submodule(name)
    new: nn.Module
    if rest == ("0",):
        new = Zero()
    elif len(rest) == 1:
        new = old.get_submodule(rest[0])
    else:
        new = nn.Sequential(*map(old.get_submodule, rest)) if rest else nn.Identity()
    new.training = old.training
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            _put(model, path, new)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
