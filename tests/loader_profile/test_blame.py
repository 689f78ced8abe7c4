import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ptools.errors import PtoolsError
from ptools.loader_profile import blame, profile_loader

MODULE = """\
import torch


class Images:
    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError("broken image")  # line 13
        return torch.zeros(3)
"""


@pytest.fixture
def images(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = write("broken_images.py", MODULE)
    monkeypatch.syspath_prepend(str(path.parent))
    import broken_images

    return broken_images


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "_SECONDS", 1)


def error_of(loader: Any) -> PtoolsError:
    with pytest.raises(PtoolsError) as caught:
        profile_loader(loader, budget=1)
    assert "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_broken_sample_is_named(workers: int, shuffle: bool, images: ModuleType) -> None:
    loader = DataLoader(images.Images(bad=17), 4, num_workers=workers, shuffle=shuffle)
    error = error_of(loader)
    assert "sample 17" in error.message
    assert "broken image" in error.message
    assert "broken_images.py:13" in error.message or "line 13" in error.message
    assert "dataset[17]" in str(error.hint)


def test_the_first_sample_may_be_broken(images: ModuleType) -> None:
    assert "sample 0" in error_of(DataLoader(images.Images(bad=0), 4)).message


def test_a_broken_sample_of_a_batch_made_at_once_is_named(images: ModuleType) -> None:
    class AtOnce(images.Images):  # type: ignore[name-defined,misc]
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices]

    assert "sample 7" in error_of(DataLoader(AtOnce(bad=7), 4)).message


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_do_not_fit_together_are_told(workers: int) -> None:
    samples = [torch.zeros(2), torch.zeros(2), torch.zeros(3), torch.zeros(2)]
    error = error_of(DataLoader(samples, batch_size=2, num_workers=workers))
    assert "collat" in error.message
    assert "stack" in error.message
    assert "collate_fn" in str(error.hint)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_stream_is_told(workers: int) -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            yield from range(10)
            raise RuntimeError("the connection broke")

    error = error_of(DataLoader(Stream(), batch_size=2, num_workers=workers))
    assert "the connection broke" in error.message


def test_an_error_of_the_sampler_is_told() -> None:
    def indices() -> Iterator[int]:
        yield 0
        raise LookupError("no such class")

    class Sampler:
        def __iter__(self) -> Iterator[int]:
            return indices()

    error = error_of(DataLoader([torch.zeros(2)] * 4, sampler=Sampler(), batch_size=1))  # type: ignore[arg-type]
    assert "no such class" in error.message


def test_a_dataset_that_cannot_be_pickled_is_one_sentence() -> None:
    class Local:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(3)

    loader = DataLoader(Local(), 4, num_workers=1, multiprocessing_context="spawn")
    error = error_of(loader)
    assert "workers cannot be started" in error.message
    assert "Local" in error.message
    assert "spawn" in str(error.hint)


def test_what_only_workers_raise_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proud:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> torch.Tensor:
            if get_worker_info() is not None:
                raise OSError("too many connections")
            return torch.zeros(3)

    monkeypatch.setattr(blame, "_SECONDS", 60)
    began = time.monotonic()
    error = error_of(DataLoader(Proud(), 4, num_workers=2))
    assert "too many connections" in error.message
    assert time.monotonic() - began < 20  # one epoch is looked through, not without an end


def test_another_error_without_workers_is_not_taken_for_theirs() -> None:
    class Bound:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> torch.Tensor:
            if get_worker_info() is None:
                raise RuntimeError("no connection in this process")
            raise OSError("too many connections")

    error = error_of(DataLoader(Bound(), 4, num_workers=2))
    assert "too many connections" in error.message
    assert "in this process" not in error.message


def test_a_worker_init_fn_that_raises_is_told() -> None:
    def init(worker: int) -> None:
        raise FileNotFoundError("data.h5")

    error = error_of(DataLoader([torch.zeros(3)] * 20, 4, num_workers=1, worker_init_fn=init))
    assert "data.h5" in error.message


def test_a_worker_that_exits_is_told() -> None:
    class Exits:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> torch.Tensor:
            if get_worker_info() is not None:
                sys.exit(1)
            return torch.zeros(3)

    message = error_of(DataLoader(Exits(), 4, num_workers=1)).message
    assert "worker" in message or "exit" in message.lower()
