"""BatchNorm whose statistics are those of all processes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ALONE = ("cpu", "mps")  # devices on which SyncBatchNorm fails

_Norm = TypeVar("_Norm", bound=_BatchNorm)


class BatchNorm(_BatchNorm):
    """For inputs of any number of dimensions, as SyncBatchNorm is."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected 2 dimensions or more, got {input.dim()}")


def sync_bn(model: nn.Module) -> nn.Module:
    """Let BatchNorms take the statistics of all processes, or of one where they cannot.

    Among several processes on GPUs each becomes a SyncBatchNorm. On a CPU, where that fails, and
    in a single process each SyncBatchNorm becomes a plain BatchNorm. Parameters, buffers and hooks
    stay the same objects: an optimizer made before still trains them.

    Two kinds stay as they are: frozen ones (in eval mode within a model in training mode, or with
    no parameter that requires a gradient), whose statistics are not to be those of a batch; and
    subclasses, whose forward may do more, as that of timm's BatchNormAct2d.

    Args:
        model: is changed in place, on the device that it is to train on, and before
            DistributedDataParallel holds it.

    Returns:
        The model, or what takes its place where it is a BatchNorm itself.
    """
    new = {
        id(module): _as(nn.SyncBatchNorm if _can_sync(model) else BatchNorm, module)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and _is_due(module, model)
    }
    for parent in model.modules():
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]
    return new.get(id(model), model)


def _can_sync(model: nn.Module) -> bool:
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return False
    return all(parameter.device.type not in _ALONE for parameter in model.parameters())


def _is_due(module: _BatchNorm, model: nn.Module) -> bool:
    if not _can_sync(model):
        return type(module) is nn.SyncBatchNorm
    learns = [parameter.requires_grad for parameter in module.parameters()]
    frozen = (model.training and not module.training) or (bool(learns) and not any(learns))
    return type(module) in (*_PLAIN, BatchNorm) and not frozen


def _as(kind: type[_Norm], module: _BatchNorm) -> _Norm:
    """The module as another class: all that it holds stays the same."""
    other = kind.__new__(kind)
    vars(other).update({"process_group": None, **vars(module)})
    return other
