"""Loaders of every kind that DataLoader allows, profiled from end to end."""

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
from ptools.loader_profile import LoaderProfile, profile_loader

MODULE = """
import time
import torch

class Planted:
    def __init__(self, length):
        self.length = length
    def __len__(self):
        return self.length
    def __getitem__(self, index):
        time.sleep(0.005)
        return torch.zeros(3)
"""


@pytest.fixture
def importable(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(write("planted_samples.py", MODULE).parent))
    import planted_samples

    return planted_samples


def brief(loader: Any, **words: Any) -> LoaderProfile:
    return profile_loader(loader, **({"budget": 0.5, "workers": [1]} | words))


def test_a_loader_shorter_than_its_workers_is_measured(planted: Any) -> None:
    profile = brief(DataLoader(planted(3, wait=5e-3), batch_size=2, num_workers=4))
    assert profile.batches_per_epoch == 2
    assert profile.current.rate > 200


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(PtoolsError, match="no batch"):
        brief(DataLoader([], num_workers=1))


def test_workers_may_be_spawned(importable: ModuleType) -> None:
    loader = DataLoader(importable.Planted(50), 4, num_workers=1, multiprocessing_context="spawn")
    profile = brief(loader)
    assert profile.current.rate == pytest.approx(200, rel=0.2)
    assert profile.stages


def test_a_fork_server_that_runs_already_is_no_matter(importable: ModuleType) -> None:
    loader = DataLoader(
        importable.Planted(8), 4, num_workers=1, multiprocessing_context="forkserver"
    )
    assert len(list(loader)) == 2
    assert brief(loader).current.rate > 100


def test_workers_may_persist(planted: Any, pids: Any) -> None:
    loader = DataLoader(
        planted(50, wait=2e-3),
        batch_size=4,
        num_workers=2,
        persistent_workers=True,
        worker_init_fn=pids.note,
    )
    profile = brief(loader)
    assert profile.current.settings.persistent_workers
    assert pids.noted and pids.all_end_within(1)


def test_a_stream_of_batches_may_be_shared_out_in_the_workers() -> None:
    class Stream(IterableDataset[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            info = get_worker_info()
            assert info is not None, "not in a worker"
            for number in range(info.id, 100, info.num_workers):
                time.sleep(2e-3)
                yield torch.tensor(number)

    assert brief(DataLoader(Stream(), batch_size=4, num_workers=2)).current.rate > 300


def test_a_dataset_may_be_opened_in_the_workers(planted: Any) -> None:
    class Opened(planted):  # type: ignore[misc]
        file: list[int] | None = None

        def __getitem__(self, index: int) -> Any:
            assert self.file is not None, "not opened"
            return super().__getitem__(index)

    def init(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.file = [1]

    dataset = Opened(100, wait=2e-3)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, worker_init_fn=init)
    profile = brief(loader)
    assert profile.current.rate > 300
    assert profile.stages and profile.verdict is not None
    assert profile.predicted[0] == 0.0  # it cannot do without


def test_nothing_is_printed(planted: Any, capfd: pytest.CaptureFixture[str]) -> None:
    brief(DataLoader(planted(50, wait=1e-3), batch_size=4, num_workers=3))
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")
