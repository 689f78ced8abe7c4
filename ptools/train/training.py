"""One training script for one process or many, on a CPU or GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from ptools import script
from ptools.errors import UsageError
from ptools.train import checkpoint
from ptools.train.loader import Loader, make_loader
from ptools.train.log import Log
from ptools.train.rates import scale_lr
from ptools.train.stepper import Stepper
from ptools.train.sync import sync_bn
from ptools.train.world import World, find_world, join, leave

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}


class Session:
    """A training as seen from one of its processes; made by `session`."""

    def __init__(self, world: World, seed: int, amp: torch.dtype | None) -> None:
        self.world = world
        self.seed = seed
        self.amp = amp
        self._loaders: list[Loader] = []
        self._steppers: list[Stepper] = []

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.world.device

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.world.rank

    @property
    def is_main(self) -> bool:
        """Whether it is the process that prints and saves."""
        return self.world.is_main

    @contextmanager
    def rank0_first(self) -> Iterator[None]:
        """A block that the other processes enter when rank 0 is through: to download, to unpack."""
        if self.world.size > 1 and not self.is_main:
            distributed.barrier()
        yield
        if self.world.size > 1 and self.is_main:
            distributed.barrier()

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        train: bool = True,
        drop_last: bool = False,
        **options: Any,
    ) -> Loader:
        """A DataLoader of this process's share, with batches on its device.

        Args:
            batch_size: samples for one process.
            shuffle: anew in each epoch, from the session's seed.
            train: False gives every sample exactly once, to one of the processes; True repeats a
                few, so that all have as many.
            options: DataLoader's others, as num_workers.

        Raises:
            UsageError: there are fewer samples than processes, or an IterableDataset is to be
                divided.
        """
        loader = make_loader(
            dataset,
            batch_size,
            self.world,
            self.seed,
            shuffle=shuffle,
            train=train,
            drop_last=drop_last,
            options=options,
        )
        self._loaders.append(loader)
        return loader

    def model(self, model: nn.Module, **options: Any) -> nn.Module:
        """The model on the device; among several processes within DistributedDataParallel.

        Its BatchNorms take the statistics of all GPUs then.

        Args:
            options: DistributedDataParallel's, as find_unused_parameters.
        """
        model = model.to(self.device)
        if self.world.size == 1:
            return model
        if self.device.type == "cuda":
            model = sync_bn(model)
            options = {"device_ids": [self.device.index], **options}
        if not any(one.requires_grad for one in model.parameters()):
            return model
        return DistributedDataParallel(model, **options)

    def stepper(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        loader: Loader | None = None,
        *,
        accum: int = 1,
        clip: float | None = None,
    ) -> Stepper:
        """See `Stepper`.

        Raises:
            UsageError: accum is no whole number from 1 on, clip is not above 0, there is no
                optimizer, or the loader is none of the session's.
        """
        if not isinstance(accum, int) or accum < 1:
            raise UsageError(f"accum={accum} batches for a step", hint="1 or more, a whole number")
        if clip is not None and not clip > 0:
            raise UsageError(f"clip={clip} would leave no gradients", hint="above 0, or None")
        if loader is not None and not isinstance(loader, Loader):
            raise UsageError(
                f"a {type(loader).__name__} does not tell the stepper when its epoch ends",
                hint="give it what session.loader(...) returned",
            )
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else [*optimizer]
        if not optimizers:
            raise UsageError("a stepper without an optimizer", hint="give it one, or a list")
        stepper = Stepper(model, optimizers, loader, self.device, self.amp, accum, clip)
        self._steppers.append(stepper)
        return stepper

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[nn.Module]:
        """A block to evaluate in: eval mode, no gradients, autocast, the bare model.

        Processes may have different numbers of batches there: DistributedDataParallel would wait
        for the others at each. Buffers are those of rank 0, as they are saved.
        """
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        if self.world.size > 1:
            for buffer in bare.buffers():
                distributed.broadcast(buffer, 0)
        modes = [(module, module.training) for module in bare.modules()]
        bare.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield bare
        finally:
            for module, training in modes:
                module.training = training

    def autocast(self) -> torch.autocast:
        """A block in the session's precision; a stepper is one by itself."""
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    @cached_property
    def log(self) -> Log:
        """Curves, histograms and pictures for TensorBoard, in the folder `runs`; see `Log`."""
        return Log("runs", self.is_main)

    def scale_lr(self, lr: float, rule: str = "linear") -> float:
        """A learning rate for one process, for as many as there are; see `scale_lr`."""
        return scale_lr(lr, self.world.size, 1, rule)

    def mean(self, value: torch.Tensor | float) -> float:
        """The mean over all processes."""
        total = torch.as_tensor(value, dtype=torch.float64).detach().to(self.device)
        if self.world.size > 1:
            distributed.all_reduce(total)
        return float(total / self.world.size)

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by rank; on all of them."""
        if self.world.size == 1:
            return [value]
        found: list[Any] = [None] * self.world.size
        distributed.all_gather_object(found, value)
        return found

    def print(self, *words: Any) -> None:
        """Print, on rank 0 alone."""
        if self.is_main:
            print(*words, flush=True)

    def save(self, file: str | Path, **parts: Any) -> None:
        """Save all that a training needs to go on as if it had not been interrupted.

        Args:
            parts: what has a state_dict (the model, optimizers, schedulers), or plain values.
                Loaders, scalers and the generators of all processes are saved by themselves.
        """
        checkpoint.save(Path(file), parts, self._own(), self.world, self._steppers)

    def load(self, file: str | Path, **parts: Any) -> dict[str, Any]:
        """Restore what `save` saved; the plain values.

        Args:
            parts: what has a state_dict, by the names that it was saved by.
        """
        return checkpoint.load(Path(file), parts, self._own(), self.world, self._steppers)

    def _own(self) -> dict[str, Any]:
        scalers = {f"scaler{at}": one.scaler for at, one in enumerate(self._steppers)}
        loaders = {f"loader{at}": one for at, one in enumerate(self._loaders)}
        return {**loaders, **scalers, "log": self.log}


@contextmanager
def session(
    seed: int = 0, amp: str | None = None, device: str | torch.device | None = None
) -> Iterator[Session]:
    """A training on all processes that were launched: by ptools launch, torchrun or SLURM, or one.

    Args:
        seed: of Python's, NumPy's and torch's generators, and of shuffling.
        amp: bf16, fp16 or no; by default what `ptools launch --amp` says, or no.
        device: by default this process's GPU, or the CPU where there is none.

    Raises:
        UsageError: there is no such amp, or none on this device.
    """
    world = find_world(device)
    dtype = _amp(amp or os.environ.get("PTOOLS_AMP", "no"), world.device)
    joined = join(world)
    script.seed(seed)
    yield Session(world, seed, dtype)
    # Not after an exception: to leave would make the others fail, and hide the first error.
    if joined:
        leave()


def _amp(name: str, device: torch.device) -> torch.dtype | None:
    if name not in _AMP:
        raise UsageError(f"there is no amp {name!r}", hint=f"one of {', '.join(_AMP)}")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("a CPU does not train in fp16", hint='amp="bf16", which needs no scaling')
    return _AMP[name]
