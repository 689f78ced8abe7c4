"""What a model must be before it is fused: whole, in eval mode, and with weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ptools.errors import UsageError

_TO_EVAL = "call model.eval() first; if that was done, a train() of its own undoes it"


def check(model: nn.Module) -> tuple[str, ...]:
    """Refuse what can't be fused; warn of what hardly was meant to be.

    Pass what is `unwrapped`.

    Raises:
        UsageError: it is no module, TorchScript or compiled, in training mode, or without weights.
    """
    if not isinstance(model, nn.Module):
        is_class = isinstance(model, type) and issubclass(model, nn.Module)
        raise UsageError(
            f"only a model can be fused, and this is of type {type(model).__name__}",
            hint=f"build it first: {model.__name__}(...)" if is_class else "pass an nn.Module",
        )
    for name, module in model.named_modules():
        _check_is_python(name or type(model).__name__, module)
    _check_weights(model)
    _check_mode(model)
    return (*_never_trained(model), *_no_numbers(model))


def is_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm: torch's, or any that keeps statistics alike."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    kept = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    is_instance_norm = isinstance(module, nn.modules.instancenorm._InstanceNorm)
    return not is_instance_norm and all(isinstance(each, torch.Tensor) for each in kept)


def _check_is_python(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(f"{name} is TorchScript", hint="fuse the model it was made from")
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        raise UsageError(f"{name} is compiled", hint="fuse the model first, then compile it")


def _check_weights(model: nn.Module) -> None:
    weights = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    lazy = [name for name, tensor in weights.items() if is_lazy(tensor)]
    if lazy:
        raise UsageError(
            f"{_part(lazy, weights)} weights are lazy and have no values yet ({_first(lazy)})",
            hint="run the model once with an input, or load its weights",
        )
    meta = [name for name, tensor in weights.items() if tensor.is_meta]
    if meta:
        raise UsageError(
            f"{_part(meta, weights)} weights are on the meta device ({_first(meta)})",
            hint="load them first: model.load_state_dict(weights, assign=True)",
        )


def _check_mode(model: nn.Module) -> None:
    norms = [name for name, module in model.named_modules() if is_norm(module)]
    training = [name for name in norms if model.get_submodule(name).training]
    if training:
        are = "is" if len(training) == 1 else "are"
        raise UsageError(
            f"{_part(training, norms)} batch norms {are} in training mode ({_first(training)})",
            hint=_TO_EVAL,
        )
    if model.training:
        raise UsageError("the model is in training mode", hint=_TO_EVAL)


def _never_trained(model: nn.Module) -> tuple[str, ...]:
    norms = {name: module for name, module in model.named_modules() if is_norm(module)}
    fresh = [name for name, module in norms.items() if _is_untouched(module)]
    if not fresh:
        return ()
    were = "was" if len(fresh) == 1 else "were"
    return (
        f"{_part(fresh, norms)} batch norms {were} never trained ({_first(fresh)}): "
        "are these the model's weights? --ckpt loads them",
    )


def _no_numbers(model: nn.Module) -> tuple[str, ...]:
    """Parameters and statistics; other buffers, such as masks, may well hold infinity."""
    weights = dict(model.named_parameters())
    for prefix, norm in model.named_modules():
        if is_norm(norm):
            weights |= dict(norm.named_buffers(prefix, recurse=False))
    plain = {name: each for name, each in weights.items() if _is_plain(each)}
    bad = [name for name, tensor in plain.items() if not tensor.isfinite().all()]
    if not bad:
        return ()
    hold = "holds" if len(bad) == 1 else "hold"
    return (
        f"{_part(bad, weights)} weights {hold} NaN or infinity ({_first(bad)}): "
        "outputs that are no numbers either prove nothing",
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Neither quantized, sparse, nor of 8 bits, which can't be asked for NaN."""
    is_dense = type(tensor.data) is torch.Tensor and tensor.layout == torch.strided
    return is_dense and tensor.is_floating_point() and tensor.element_size() > 1


def _is_untouched(norm: Any) -> bool:
    """No batch was counted and the statistics are the first ones.

    Weights converted from elsewhere come with statistics, but without the count.
    """
    if norm.running_mean is None or getattr(norm, "num_batches_tracked", None):
        return False
    return not norm.running_mean.any() and bool((norm.running_var == 1).all())


def _part(some: list[str], all_: Iterable[str]) -> str:
    return f"{len(some)} of {len(list(all_))}"


def _first(names: list[str]) -> str:
    return names[0] or "the model itself" if len(names) == 1 else f"{names[0]}, ..."
