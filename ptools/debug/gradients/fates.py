"""What became of each parameter: was it used, did a gradient arrive, does an optimizer hold it?"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter

from ptools.debug.calls import node_of
from ptools.program.modules import Modules
from ptools.program.places import Place
from ptools.program.spots import Spot, spot

ENOUGH = 3  # backward calls, and steps, before anything is said to be never


@dataclass(eq=False)
class Fate:
    """What is known of one parameter. Plain numbers, which outlive it."""

    ref: weakref.ref[torch.Tensor]
    dtype: torch.dtype
    name: str = ""
    kin: str = ""  # the same for all members of a ModuleList: layers, experts
    made: Spot | None = None  # where it was given to a module
    order: int = 0  # when that was, among the makings of parameters and optimizers
    root: object = None  # what stands for the called module that has it
    wanted: int = 0  # backward calls in which it required a gradient
    arrived: int = 0  # those after which it had one, until one was not zero
    moved: bool = False  # a gradient was not zero
    frozen: bool = False
    in_graph: Spot | None = None  # the first call that used it, with gradients on
    outside: Spot | None = None  # the same with gradients off
    used_by: str = ""  # the module of that call
    optimizer: Held | None = None
    versions: list[int] = field(default_factory=list)  # of its values: when first seen, and last

    @property
    def registered(self) -> bool:
        """Whether a module that was called has it."""
        return self.root is not None

    @property
    def written(self) -> bool:
        """Whether its values were changed since it was first seen."""
        return len(set(self.versions)) > 1

    @property
    def own(self) -> bool:
        """Whether it was made by the user's own code, not by an installed package's."""
        return self.made is not None and self.made.outer is None

    @property
    def stepped(self) -> bool:
        """Whether its optimizer has made enough steps to judge it by."""
        return self.optimizer is not None and self.optimizer.steps >= ENOUGH


@dataclass(eq=False)
class Held:
    """An optimizer, as far as its parameters are concerned."""

    name: str
    made: Spot
    order: int
    steps: int = 0


class Fates:
    """The fates of all parameters that modules and optimizers have."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._by_id: dict[int, Fate] = {}
        self._past: list[Fate] = []
        self._doubtful: list[Fate] = []  # no gradient that is not zero has been seen
        self._roots: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._order = 0
        self.optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, Held] = (
            weakref.WeakKeyDictionary()
        )
        self.last_optimizer = 0  # the order of the one made last

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notice the making of parameters and optimizers while the block runs."""
        hook = register_module_parameter_registration_hook(self._registered)
        before = torch.optim.Optimizer.__init__
        fates = self

        def made(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            before(self, *args, **kwargs)
            fates.hold(self)

        changed: Any = torch.optim.Optimizer
        changed.__init__ = made
        try:
            yield
        finally:
            changed.__init__ = before
            hook.remove()

    def of(self, tensor: torch.Tensor) -> Fate:
        """The fate of a parameter."""
        key = id(tensor)
        fate = self._by_id.get(key)
        if fate is None or fate.ref() is not tensor:
            fate = Fate(weakref.ref(tensor, lambda ref: self._died(key, ref)), tensor.dtype)
            self._by_id[key] = fate
            self._doubtful.append(fate)
        return fate

    def of_all(self, tensors: list[torch.Tensor]) -> Iterator[Fate]:
        """The fates of those tensors that are parameters, or that an optimizer holds."""
        for tensor in tensors:
            if not tensor.requires_grad or node_of(tensor) is not None:
                continue
            # Any tensor may ask for its gradient: an input whose influence is wanted.
            if isinstance(tensor, nn.Parameter) or id(tensor) in self._by_id:
                yield self.of(tensor)

    def all(self) -> list[Fate]:
        """The fates of those that are alive, and of those that were trained."""
        return sorted([*self._past, *self._by_id.values()], key=lambda fate: fate.order)

    def hold(self, optimizer: torch.optim.Optimizer) -> Held:
        """Note which parameters an optimizer has now."""
        held = self.optimizers.get(optimizer)
        if held is None:
            self._order += 1
            self.last_optimizer = self._order
            held = Held(type(optimizer).__name__, self.here(), self._order)
            self.optimizers[optimizer] = held
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.of(parameter).optimizer = held
        return held

    def look(self) -> None:
        """Note the names of what the called modules have, and how all parameters stand."""
        for root in self._modules.roots():
            self._roots.add(root)
            self._name(root, type(root).__name__, weakref.ref(root))
        for fate in self._by_id.values():
            parameter = fate.ref()
            if parameter is not None and not isinstance(parameter, UninitializedParameter):
                fate.frozen = not parameter.requires_grad
                if not parameter.is_inference():
                    fate.versions = [*fate.versions[:1], parameter._version]

    def after_backward(self) -> None:
        """See which gradients have arrived."""
        if len(self._roots) != len(self._modules.roots()):
            self.look()
        unsure = []
        for fate in self._doubtful:
            parameter = fate.ref()
            if parameter is None or not parameter.requires_grad:
                continue
            fate.wanted += 1
            if parameter.grad is not None:
                fate.arrived += 1
                unsure.append(fate)
        for fate in unsure:
            fate.moved = _is_not_zero(fate.ref())
        self._doubtful = [one for one in self._doubtful if not one.moved and one.ref() is not None]

    def here(self) -> Spot:
        """The line that is running."""
        return spot(self._modules, 3)

    def place(self, where: Spot | None) -> Place | None:
        """A spot as a line."""
        return None if where is None else where.place(self._modules)

    def _registered(self, module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is None:
            return
        fate = self.of(parameter)
        if fate.made is None:
            self._order += 1
            fate.order, fate.made = self._order, self.here()
            fate.name = f"{type(module).__name__}.{name}"

    def _name(self, module: nn.Module, kin: str, root: object) -> None:
        path = ""
        for name, parameter in module.named_parameters(recurse=False):
            fate = self.of(parameter)
            if not fate.registered:
                fate.root, fate.kin = root, f"{kin}.{name}"
                path = path or self._modules.name(module)
                fate.name = f"{path}.{name}"
        alike = isinstance(module, nn.ModuleList | nn.ModuleDict)
        for name, child in module.named_children():
            self._name(child, f"{kin}.*" if alike else f"{kin}.{name}", root)

    def _died(self, key: int, ref: weakref.ref[torch.Tensor]) -> None:
        fate = self._by_id.get(key)
        if fate is None or fate.ref is not ref:
            return
        del self._by_id[key]
        if fate.moved or fate.wanted >= ENOUGH or fate.optimizer is not None:
            self._past.append(fate)


def _is_not_zero(parameter: torch.Tensor | None) -> bool:
    gradient = None if parameter is None else parameter.grad
    if gradient is None:
        return False
    values = gradient.detach()
    values = values.coalesce().values() if values.is_sparse else values
    return bool(values.any())
