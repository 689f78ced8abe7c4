"""What takes the batches: a model's training step, and the way to a GPU."""

import copy
import time
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ptools.errors import PtoolsError
from ptools.loader_profile.isolate import PATIENCE, isolated
from ptools.loader_profile.rebuild import rebuilt, settings_of
from ptools.loader_profile.report import Transfer
from ptools.loader_profile.steady import tensors_in
from ptools.usercode import describe

_STEPS = 5
_WARM = 2


def step_seconds(model: nn.Module, loader: Any) -> float:
    """The median time of a forward and a backward with the loader's first batch.

    The model is a copy, on a GPU if there is one.

    Raises:
        PtoolsError: the model does not take what the loader gives.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = _first_batch(loader)
    with torch.random.fork_rng():
        trained = copy.deepcopy(model).to(device).train()
        try:
            times = [_step(trained, _inputs(batch, device)) for _ in range(_WARM + _STEPS)]
        except Exception as error:
            raise PtoolsError(
                f"the model does not take a batch of this loader: {describe(error)}",
                hint="--step-ms gives the time of a step without a model",
            ) from error
    return median(times[_WARM:])


def _first_batch(loader: Any) -> Any:
    if isinstance(loader, DataLoader):
        loader = rebuilt(loader, settings_of(loader).with_workers(0))
    return isolated(lambda: next(iter(loader), None), PATIENCE)


def _inputs(batch: Any, device: torch.device) -> Any:
    """What the forward is called with: of (inputs, targets) the inputs, a dict as keywords."""
    if isinstance(batch, (list, tuple)):
        batch = batch[0]
    if isinstance(batch, dict):
        return {
            key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)
        }
    return batch.to(device)


def _step(model: nn.Module, inputs: Any) -> float:
    _wait(inputs)
    began = time.perf_counter()
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    floats = [one for one in tensors_in(output) if one.requires_grad]
    sum(one.float().sum() for one in floats).backward()  # type: ignore[union-attr]
    model.zero_grad()
    _wait(inputs)
    return time.perf_counter() - began


def _wait(inputs: Any) -> None:
    if any(tensor.is_cuda for tensor in tensors_in(inputs)):
        torch.cuda.synchronize()


def transfer(loader: Any) -> Transfer | None:
    """The time to bring a batch to the GPU from pageable and from pinned memory; None without."""
    if not torch.cuda.is_available():
        return None
    tensors = list(tensors_in(_first_batch(loader)))
    pinned = [tensor.pin_memory() for tensor in tensors]
    name = torch.cuda.get_device_name()
    return Transfer(name, _copy_seconds(tensors), _copy_seconds(pinned))


def _copy_seconds(tensors: list[torch.Tensor]) -> float:
    times: list[float] = []
    for _ in range(_WARM + _STEPS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for tensor in tensors:
            tensor.to("cuda", non_blocking=True)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times[_WARM:])
