"""A DataLoader for each process of a job: its share of the samples, on its device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from ptools.errors import UsageError
from ptools.train.devices import to_device
from ptools.train.world import World

_UNDIVIDED = (
    "each process reads a whole IterableDataset, unless its __iter__ takes every world_size-th "
    "sample from rank on"
)


class Loader:
    """Iterate over it once for each epoch; batches come on the process's device.

    `epoch` is the number of the epoch that the next iteration runs through, `batch` the number of
    batches of it that were handed out. They are saved and restored by `Session.save` and `load`,
    and a restored epoch goes on behind the batches that were handed out. It goes on bit for bit
    unless workers draw random numbers, which begin anew there.

    An epoch that was left by `break` is over when the next iteration begins.
    """

    def __init__(self, loader: DataLoader[Any], world: World, seed: int) -> None:
        self.seed = seed  # of shuffling
        self.epoch = 0
        self.batch = 0
        self._is_last = False  # no batch of this epoch comes after the one handed out
        self._iteration = 0  # the one that hands batches out
        self._is_begun = False  # so that the next iteration is of the next epoch
        self._loader = loader
        self._world = world

    def __len__(self) -> int:
        """Batches of a whole epoch for this process."""
        return len(self._loader)

    @property
    def dataset(self) -> Dataset[Any]:
        """What it reads from."""
        return self._loader.dataset

    def __iter__(self) -> Iterator[Any]:
        return self.counted(iter)

    def counted(self, ahead: Callable[[Iterable[Any]], Iterator[Any]]) -> Iterator[Any]:
        """The same by way of what reads ahead: batches count when they come out of it."""
        if self._is_begun:
            self.epoch, self.batch = self.epoch + 1, 0
        self._is_begun, self._is_last, self._iteration = True, False, self._iteration + 1
        mine = self._iteration
        for batch, is_last in _with_last(ahead(self._begin()), self.batch, self._count()):
            if mine != self._iteration:
                raise UsageError(
                    "two loops go through one loader at once",
                    hint="give the inner one a session.loader(...) of its own",
                )
            self.batch, self._is_last = self.batch + 1, is_last
            yield to_device(batch, self._world.device)
        if mine == self._iteration:
            self.epoch, self.batch, self._is_begun = self.epoch + 1, 0, False

    def _begin(self) -> Iterator[Any]:
        """The batches of this epoch, behind those that were handed out."""
        sampler = self._loader.batch_sampler
        if isinstance(sampler, _Resumable):
            sampler.begin(self.epoch, self.batch, self.seed)
        before = torch.get_rng_state()
        batches = iter(self._loader)  # draws the workers' seed
        if self.batch:  # that was drawn when the epoch began
            torch.set_rng_state(before)
        # An IterableDataset can only be read again from its beginning.
        return batches if isinstance(sampler, _Resumable) else islice(batches, self.batch, None)

    def _count(self) -> int | None:
        """Batches of an epoch, where that is known."""
        return None if isinstance(self.dataset, IterableDataset) else len(self._loader)

    def left(self) -> int | None:
        """Batches of this epoch from the one that was handed out on; None if that is not known."""
        count = self._count()
        if count is None:
            return 1 if self._is_last else None
        return count - self.batch + 1

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"epoch": self.epoch, "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.batch, self.seed = state["epoch"], state["batch"], state["seed"]
        self._is_begun = False


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    world: World,
    seed: int,
    *,
    shuffle: bool,
    train: bool,
    drop_last: bool,
    options: dict[str, Any],
) -> Loader:
    """See `Session.loader`.

    Raises:
        UsageError: there are fewer samples than processes.
    """
    if isinstance(dataset, IterableDataset):
        if world.size > 1:
            warnings.warn(_UNDIVIDED, stacklevel=3)
        return Loader(DataLoader(dataset, batch_size, drop_last=drop_last, **options), world, seed)
    if not isinstance(dataset, Sized):
        raise UsageError(
            f"a {type(dataset).__name__} has no length", hint="give it __len__ and __getitem__"
        )
    if train and len(dataset) == 0:
        raise UsageError("the dataset has no samples", hint="look where it reads them from")
    if train and len(dataset) < world.size:
        raise UsageError(
            f"{len(dataset)} samples cannot be divided among {world.size} processes",
            hint="launch fewer processes",
        )
    share: Sampler[int] = (
        DistributedSampler(dataset, world.size, world.rank, shuffle=shuffle, drop_last=drop_last)
        if train
        else _Once(range(world.rank, len(dataset), world.size))
    )
    batches = _Resumable(share, batch_size, drop_last)
    return Loader(DataLoader(dataset, batch_sampler=batches, **options), world, seed)


class _Once(Sampler[int]):
    """Every sample exactly once among all processes: DistributedSampler repeats some."""

    def __init__(self, indices: range) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class _Resumable(BatchSampler):
    """Begins an epoch, or goes on within one without reading what was there before."""

    _skipped = 0

    def begin(self, epoch: int, skipped: int, seed: int) -> None:
        """The next iteration is through this epoch, behind so many batches."""
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.seed = seed
            self.sampler.set_epoch(epoch)
        self._skipped = skipped

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(super().__iter__()):
            if number >= self._skipped:
                yield batch


def _with_last(
    batches: Iterator[Any], before: int, count: int | None
) -> Iterator[tuple[Any, bool]]:
    """Batches, each with whether it is the last; where none are counted that is seen one ahead."""
    if count is not None:
        for number, batch in enumerate(batches, before + 1):
            yield batch, number == count
        return
    try:
        batch = next(batches)
    except StopIteration:
        return
    for following in batches:
        yield batch, False
        batch = following
    yield batch, True
