"""What a DataLoader hands to the training: is it finite, and which sample is not?"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ptools.debug.finite import Unseen, is_finite
from ptools.debug.nan.origins import Origins
from ptools.debug.nan.stats import stats_of


class Batches:
    """Tells `origins` of each batch that is not finite."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        # Workers fetch ahead: the samples of the batches that were asked for, oldest first.
        self._asked: weakref.WeakKeyDictionary[Any, tuple[Any, deque[Any]]] = (
            weakref.WeakKeyDictionary()
        )

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Look at what all DataLoaders bring while the block runs."""
        base: Any = _BaseDataLoaderIter
        following, asking = base.__next__, base._next_index

        def noted_index(loader: Any) -> Any:
            samples = asking(loader)
            source, asked = self._asked.get(loader, (None, None))
            if asked is None or source is not loader._sampler_iter:  # a new epoch
                asked = deque()
                self._asked[loader] = loader._sampler_iter, asked
            asked.append(samples)
            return samples

        def noted_next(loader: Any) -> Any:
            batch = following(loader)
            asked = self._asked.get(loader, (None, None))[1]
            with Unseen():
                self._look(batch, asked.popleft() if asked else None)
            return batch

        base.__next__, base._next_index = noted_next, noted_index
        try:
            yield
        finally:
            base.__next__, base._next_index = following, asking

    def _look(self, batch: Any, samples: Any) -> None:
        for path, tensor in _fields(batch, ""):
            if not is_finite(tensor):
                first = stats_of("", tensor).where
                self._origins.brought(tensor, _fact(path, first, samples))


def _fact(path: str, first: tuple[int, ...] | None, samples: Any) -> str:
    field = f"batch{path}" if path else "the batch"
    if not first:
        return f"{field} came from the DataLoader"
    which = f"sample {first[0]} of {field}"
    if isinstance(samples, list) and first[0] < len(samples):
        return f"{which} is not finite: number {samples[first[0]]} of the data set"
    return f"{which} is not finite"


def _fields(batch: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(batch, torch.Tensor):
        yield path, batch
    elif isinstance(batch, dict):
        for key, value in batch.items():
            yield from _fields(value, f"{path}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for number, value in enumerate(batch):
            yield from _fields(value, f"{path}[{number}]")
