"""The same DataLoader with other settings, and without an end."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ptools.loader_profile.report import Settings


class Endless:
    """A sampler that begins again when it is through; it counts what it hands out."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.batches = 0
        self.samples = 0

    def __iter__(self) -> Iterator[Any]:
        empty = False
        while not empty:
            empty = True
            for chosen in self.sampler:
                empty = False
                self.batches += 1
                self.samples += len(chosen) if isinstance(chosen, (list, tuple)) else 1
                yield chosen


class StandIn:
    """Stands for a dataset, also for a worker_init_fn that reads or sets what it has."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["dataset"] = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


class EndlessStream(StandIn, IterableDataset[Any]):
    """An IterableDataset that begins again when it is through."""

    def __iter__(self) -> Iterator[Any]:
        empty = False
        while not empty:
            empty = True
            for sample in self.dataset:
                empty = False
                yield sample


def settings_of(loader: DataLoader[Any]) -> Settings:
    """The settings that a loader has."""
    return Settings(
        num_workers=loader.num_workers,
        batch_size=loader.batch_size,
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
        persistent_workers=loader.persistent_workers,
        pin_memory=loader.pin_memory,
        in_order=loader.in_order,
    )


def rebuilt(
    loader: DataLoader[Any],
    settings: Settings,
    *,
    dataset: Any = None,
    collate_fn: Callable[[Any], Any] | None = None,
    worker_init_fn: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """A loader over the same data with these settings, which never ends.

    A `dataset`, `collate_fn` and `worker_init_fn` take the place of the loader's own.
    """
    dataset = loader.dataset if dataset is None else dataset
    chosen: dict[str, Any] = {}
    if isinstance(loader.dataset, IterableDataset):
        dataset = EndlessStream(dataset)
        chosen |= {"batch_size": settings.batch_size, "drop_last": loader.drop_last}
    elif loader.batch_sampler is None:
        chosen |= {"batch_size": None, "sampler": Endless(loader.sampler)}
    else:
        chosen["batch_sampler"] = Endless(_batches(loader, settings.batch_size))
    if settings.num_workers:
        chosen |= {
            "prefetch_factor": settings.prefetch_factor or 2,
            "timeout": loader.timeout,
            "multiprocessing_context": loader.multiprocessing_context,
            "worker_init_fn": worker_init_fn or loader.worker_init_fn,
            "in_order": settings.in_order,
        }
    return DataLoader(
        dataset,
        num_workers=settings.num_workers,
        collate_fn=collate_fn or loader.collate_fn,
        pin_memory=settings.pin_memory and torch.cuda.is_available(),
        generator=loader.generator,
        **chosen,
    )


def batch_size_is_fixed(loader: DataLoader[Any]) -> bool:
    """Whether the batches are made by what the user wrote."""
    if isinstance(loader.dataset, IterableDataset):
        return loader.batch_size is None
    return type(loader.batch_sampler) is not BatchSampler


def _batches(loader: DataLoader[Any], batch_size: int | None) -> Any:
    batches = loader.batch_sampler
    if batch_size in (None, loader.batch_size) or type(batches) is not BatchSampler:
        return batches
    return BatchSampler(batches.sampler, batch_size, drop_last=True)
