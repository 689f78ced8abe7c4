import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from ptools.loader_profile.rebuild import batch_size_is_fixed, rebuilt, settings_of
from ptools.loader_profile.report import Settings


class Samples:
    """A dataset without any base class."""

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"number": index, "image": torch.full((2, 2), index)}


class Batched(Samples):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in reversed(indices)]


class Stream(IterableDataset[int]):
    """Numbers, of which a worker_init_fn gives each worker its own."""

    def __init__(self, length: int = 12) -> None:
        self.numbers = list(range(length))

    def __iter__(self) -> Iterator[int]:
        yield from self.numbers


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(self.numbers)


def share_out(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.numbers = info.dataset.numbers[worker :: info.num_workers]


def as_text(samples: list[Any]) -> str:
    return f"{samples} {random.random():.3f}"


def shuffled(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Make = Callable[[], DataLoader[Any]]
LOADERS: dict[str, Make] = {
    "plain": lambda: DataLoader(Samples(), batch_size=4),
    "last batch smaller": lambda: DataLoader(Samples(10), batch_size=4),
    "drop_last": lambda: DataLoader(Samples(10), batch_size=4, drop_last=True),
    "workers": lambda: DataLoader(Samples(10), batch_size=4, num_workers=2, prefetch_factor=3),
    "shuffled": lambda: DataLoader(Samples(), 4, shuffle=True, generator=shuffled(7)),
    "shuffled by the global state": lambda: DataLoader(Samples(), batch_size=4, shuffle=True),
    "sampler": lambda: DataLoader(
        Samples(), 4, sampler=WeightedRandomSampler([1.0] * 12, 12, generator=shuffled(3))
    ),
    "batch_sampler": lambda: DataLoader(
        Samples(), batch_sampler=BatchSampler(SequentialSampler(range(12)), 5, drop_last=False)
    ),
    "list of batches": lambda: DataLoader(Samples(), batch_sampler=[[3, 1], [2], [0, 4, 5]]),
    "batch_size=None": lambda: DataLoader(Samples(), batch_size=None),
    "batches by the sampler": lambda: DataLoader(
        torch.arange(10), batch_size=None, sampler=[[0, 1, 2], [5, 6]]
    ),
    "collate": lambda: DataLoader(Samples(), batch_size=4, collate_fn=as_text),
    "__getitems__": lambda: DataLoader(Batched(), batch_size=4),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "stream with a length": lambda: DataLoader(SizedStream(), batch_size=4),
    "stream of batches": lambda: DataLoader(Stream(), batch_size=None),
    "stream of batches, collated": lambda: DataLoader(Stream(), batch_size=None, collate_fn=str),
    "stream of workers": lambda: DataLoader(
        Stream(), batch_size=3, num_workers=2, worker_init_fn=share_out
    ),
    "one worker of a stream": lambda: DataLoader(
        Stream(), batch_size=3, num_workers=1, worker_init_fn=share_out, in_order=False
    ),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_the_first_epoch_is_the_same_and_more_follow(make: Make) -> None:
    random.seed(5)
    torch.manual_seed(5)
    expected = list(make())
    random.seed(5)
    torch.manual_seed(5)
    loader = make()
    iterator = iter(rebuilt(loader, settings_of(loader)))
    found = list(islice(iterator, len(expected)))
    assert repr(found) == repr(expected)
    assert len(list(islice(iterator, 2 * len(expected)))) == 2 * len(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_loader_is_shuffled_anew_in_each_epoch(workers: int) -> None:
    loader = DataLoader(range(50), batch_size=50, shuffle=True, num_workers=workers)
    first, second = islice(iter(rebuilt(loader, settings_of(loader))), 2)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader([], batch_size=4),
        lambda: DataLoader([], batch_size=None),
        lambda: DataLoader(range(3), batch_size=4, drop_last=True),
        lambda: DataLoader(range(3), batch_sampler=[]),
        lambda: DataLoader(Stream(0), batch_size=4),
        lambda: DataLoader(Stream(0), batch_size=4, num_workers=2),
    ],
    ids=["empty", "empty, single", "shorter than a batch", "no batches", "stream", "workers"],
)
def test_a_loader_without_batches_ends(make: Make) -> None:
    loader = make()
    assert list(rebuilt(loader, settings_of(loader))) == []


def test_a_stream_that_is_used_up_ends() -> None:
    class Once(IterableDataset[int]):
        def __init__(self) -> None:
            self.left = iter(range(8))

        def __iter__(self) -> Iterator[int]:
            return self.left

    loader = DataLoader(Once(), batch_size=4)
    assert len(list(rebuilt(loader, settings_of(loader)))) == 2


def test_other_settings_are_taken_over() -> None:
    loader = DataLoader(Samples(), batch_size=4, num_workers=1, timeout=20)
    settings = Settings(2, batch_size=3, prefetch_factor=5, in_order=False)
    other = rebuilt(loader, settings)
    assert (other.num_workers, other.prefetch_factor, other.in_order) == (2, 5, False)
    assert other.timeout == 20
    other = rebuilt(loader, Settings(0, batch_size=3))
    assert [batch["number"].tolist() for batch in islice(other, 2)] == [[0, 1, 2], [3, 4, 5]]


def test_the_settings_are_those_of_the_loader() -> None:
    loader = DataLoader(
        Samples(), 4, num_workers=3, prefetch_factor=7, persistent_workers=True, in_order=False
    )
    assert settings_of(loader) == Settings(3, 4, 7, True, False, False)
    assert settings_of(DataLoader(Samples())) == Settings(0, 1, None)
    assert settings_of(loader).with_workers(0).prefetch_factor is None


def test_the_loader_itself_stays_as_it_was() -> None:
    loader = DataLoader(Samples(), 4, shuffle=True, generator=shuffled(7))
    before = dict(vars(loader))
    rebuilt(loader, settings_of(loader).with_workers(2))
    assert vars(loader) == before


def test_a_batch_size_can_be_changed_where_the_loader_makes_the_batches() -> None:
    assert not batch_size_is_fixed(LOADERS["plain"]())
    assert not batch_size_is_fixed(LOADERS["stream"]())
    for name in ("list of batches", "batch_size=None", "stream of batches"):
        assert batch_size_is_fixed(LOADERS[name]()), name
