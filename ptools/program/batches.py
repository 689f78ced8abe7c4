"""What DataLoaders hand to a training."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

Got = Callable[[Any, Any], None]  # takes a batch and, if they are known, its sample numbers


@contextmanager
def batches_told(got: Got) -> Iterator[None]:
    """Tell of each batch that any DataLoader brings while the block runs."""
    # Workers fetch ahead: the samples of the batches that were asked for, oldest first.
    waiting: weakref.WeakKeyDictionary[Any, tuple[Any, deque[Any]]] = weakref.WeakKeyDictionary()
    base: Any = _BaseDataLoaderIter
    following, asking = base.__next__, base._next_index

    def noted_index(loader: Any) -> Any:
        samples = asking(loader)
        source, asked = waiting.get(loader, (None, None))
        if asked is None or source is not loader._sampler_iter:  # a new epoch
            asked = deque()
            waiting[loader] = loader._sampler_iter, asked
        asked.append(samples)
        return samples

    def noted_next(loader: Any) -> Any:
        batch = following(loader)
        asked = waiting.get(loader, (None, None))[1]
        got(batch, asked.popleft() if asked else None)
        return batch

    base.__next__, base._next_index = noted_next, noted_index
    try:
        yield
    finally:
        base.__next__, base._next_index = following, asking


def fields(batch: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a batch, with what stands after `batch` to come to them: `[0]['label']`."""
    if isinstance(batch, torch.Tensor):
        yield path, batch
    elif isinstance(batch, dict):
        for key, value in batch.items():
            yield from fields(value, f"{path}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for number, value in enumerate(batch):
            yield from fields(value, f"{path}[{number}]")
