"""A session's loader: epochs that are left or restored, streams, and batches of any make."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ptools.errors import UsageError
from ptools.train.devices import to_device
from ptools.train.loader import Loader, make_loader
from ptools.train.prefetch import BackgroundLoader, CUDAPrefetcher
from ptools.train.world import World

CPU = World(0, 1, 0, torch.device("cpu"))


def loader(dataset: Dataset[Any], batch_size: int = 2, shuffle: bool = False) -> Loader:
    made = {"shuffle": shuffle, "train": True, "drop_last": False}
    return make_loader(dataset, batch_size, CPU, 0, options={}, **made)


def read(batches: Any) -> list[list[int]]:
    return [one[0].tolist() if isinstance(one, list) else one.tolist() for one in batches]


class Stream(IterableDataset[torch.Tensor]):
    """Seven samples, without a length."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(7))


def test_a_stream_is_read_anew_in_each_epoch() -> None:
    batches = loader(Stream())
    assert [read(batches) for _ in range(3)] == [[[0, 1], [2, 3], [4, 5], [6]]] * 3
    assert batches.epoch == 3


def test_a_restored_epoch_of_a_stream_goes_on_behind_what_was_handed_out() -> None:
    batches = loader(Stream())
    batches.load_state_dict({"epoch": 1, "batch": 3, "seed": 0})
    assert read(batches) == [[6]] and batches.epoch == 2


def test_an_epoch_left_by_break_is_over_and_the_next_is_whole() -> None:
    whole, broken = (loader(TensorDataset(torch.arange(8)), shuffle=True) for _ in range(2))
    epochs = [read(whole) for _ in range(2)]
    for _ in broken:
        break
    assert broken.state_dict() == {"epoch": 0, "batch": 1, "seed": 0}  # to be restored in it
    assert read(broken) == epochs[1] and broken.epoch == 2


def test_two_loops_through_one_loader_are_refused() -> None:
    batches = loader(TensorDataset(torch.arange(8)))
    with pytest.raises(UsageError, match="two loops") as caught:
        for _ in batches:
            assert len(read(batches)) == 4
    assert "of its own" in str(caught.value.hint)


class Mine(dict[str, Any]):
    pass


class Words:
    """No tensor, and with a `to` of one argument, as transformers' BatchEncoding."""

    device = "cpu"

    def to(self, device: torch.device) -> "Words":
        moved = Words()
        moved.device = device.type
        return moved


def test_all_that_can_move_is_moved_to_the_device() -> None:
    batch = {"mine": Mine(x=torch.ones(2), name="a"), "words": [Words(), "text", None]}
    moved = to_device(batch, torch.device("meta"))
    assert type(moved["mine"]) is Mine and moved["mine"]["x"].is_meta
    assert moved["mine"]["name"] == "a" and not batch["mine"]["x"].is_meta  # type: ignore[index]
    assert moved["words"][0].device == "meta" and moved["words"][1:] == ["text", None]


def test_batches_read_ahead_do_not_count_before_the_training_gets_them() -> None:
    batches = loader(TensorDataset(torch.arange(8)), shuffle=True)
    expected = read(loader(TensorDataset(torch.arange(8)), shuffle=True))
    counts, got = [], []
    for batch in CUDAPrefetcher(BackgroundLoader(batches, depth=3), "cpu"):
        time.sleep(0.01)  # for the thread to be ahead
        counts.append((batches.batch, batches.left()))
        got.append(batch)
    assert counts == [(1, 4), (2, 3), (3, 2), (4, 1)]
    assert read(got) == expected and batches.epoch == 1
