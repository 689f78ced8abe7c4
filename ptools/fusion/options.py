"""Further changes for inference, as plain data: another layout, another dtype, less memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ptools.errors import PtoolsError
from ptools.fusion.affine import Kernel

ACTIVATIONS = (
    *(nn.ReLU, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish),
    *(nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Threshold),
)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class ChannelsLast:
    """Weights and images with their channels innermost, as fast kernels want them."""

    name = "channels last"

    def apply(self, model: nn.Module, kernel: Kernel | None = None) -> None:
        """Lay out the weights."""
        for parameter in model.parameters():
            parameter.data = self.place(parameter.data)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A weight or an input in this layout; one that has no channels is left."""
        layout = _FORMATS.get(tensor.dim())
        return tensor if layout is None else tensor.contiguous(memory_format=layout)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"channels_last": True}


@dataclass(frozen=True)
class InplaceRelu:
    """Activations that write their result over their input."""

    modules: tuple[str, ...]
    name = "in-place activations"

    def apply(self, model: nn.Module, kernel: Kernel | None = None) -> None:
        """Set the flag.

        Raises:
            PtoolsError: a module is no activation of torch's.
        """
        for name in self.modules:
            module: Any = model.get_submodule(name)
            if not isinstance(module, ACTIVATIONS):
                kind = type(module).__name__
                raise PtoolsError(f"the recipe makes {name} work in place, which is a {kind}")
            module.inplace = True

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """Inputs are as they were."""
        return tensor

    def to_dict(self) -> dict[str, Any]:
        """As plain strings."""
        return {"inplace": list(self.modules)}


@dataclass(frozen=True)
class Cast:
    """Weights, statistics and inputs of 16 bits: to come after folding, which wants all bits."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """That of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    def apply(self, model: nn.Module, kernel: Kernel | None = None) -> None:
        """Cast whatever is floating-point."""
        model.to(self.dtype)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """An input in the dtype; integers are left."""
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def to_dict(self) -> dict[str, Any]:
        """As a plain string."""
        return {"dtype": self.name}


Option = ChannelsLast | InplaceRelu | Cast


def option_of(entry: Mapping[str, Any]) -> Option | None:
    """What `to_dict` made; None for other steps.

    Raises:
        PtoolsError: it names another dtype, or no names of modules.
    """
    if "channels_last" in entry:
        return ChannelsLast()
    if "dtype" in entry:
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise PtoolsError(f"the recipe casts to {entry['dtype']!r}, which is no dtype for it")
        return Cast(DTYPES[entry["dtype"]])
    if "inplace" in entry:
        names = entry["inplace"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PtoolsError("the recipe names no modules that are to work in place")
        return InplaceRelu(tuple(names))
    return None
