import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ptools.errors import PtoolsError
from ptools.loader_profile import batch, profile_loader
from ptools.loader_profile.rebuild import settings_of
from ptools.loader_profile.report import Batch

Pair = namedtuple("Pair", ["image", "label"])
MIB = 2**20


class Images:
    """10 images of 3 MiB with a label of 8 bytes."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return Pair(torch.zeros(3, 512, 512), torch.tensor(index))


def weighed(loader: DataLoader[Any]) -> Batch:
    settings = settings_of(loader)
    return batch.first_batch(loader, settings, drawn=settings.with_workers(0))


def test_the_bytes_are_those_of_all_tensors() -> None:
    found = weighed(DataLoader(Images(), batch_size=4))
    assert (found.samples, found.tensors, found.bytes) == (4, 2, 4 * (3 * MIB + 8))
    assert found.shared_bytes == 0  # there are no workers


def test_tensors_are_found_in_whatever_a_batch_is() -> None:
    class Custom:
        def __init__(self, samples: Any) -> None:
            self.inside = {"a": [torch.zeros(10, dtype=torch.float64)], "b": (torch.zeros(5), "x")}

    found = weighed(DataLoader(Images(), batch_size=2, collate_fn=Custom))
    assert (found.tensors, found.bytes) == (2, 100)


def test_a_batch_without_tensors_weighs_nothing() -> None:
    found = weighed(DataLoader(Images(), batch_size=2, num_workers=2, collate_fn=str))
    assert (found.tensors, found.bytes, found.shared_bytes) == (0, 0, 0)
    assert batch.most_workers(found, settings_of(DataLoader(Images()))) is None


@pytest.mark.parametrize(("workers", "prefetch", "batches"), [(1, 2, 3), (4, 2, 9), (3, 5, 16)])
def test_shared_memory_holds_what_is_prefetched_and_what_is_consumed(
    workers: int, prefetch: int, batches: int
) -> None:
    loader = DataLoader(Images(), 2, num_workers=workers, prefetch_factor=prefetch)
    found = weighed(loader)
    assert found.shared_bytes == batches * found.bytes


def test_as_many_workers_as_are_said_to_fit_do_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_free", lambda: 64 * MIB)
    loader = DataLoader(Images(), batch_size=2, num_workers=8)
    most = batch.most_workers(weighed(loader), settings_of(loader))
    assert most is not None and 0 < most < 8
    for count in (most, most + 1):
        settings = settings_of(loader).with_workers(count)
        found = batch.first_batch(loader, settings, drawn=settings.with_workers(0))
        if count == most:
            batch.check(found, settings)
        else:
            with pytest.raises(PtoolsError):
                batch.check(found, settings)


def test_the_shared_memory_is_that_of_the_settings_not_of_those_it_is_drawn_with(pids: Any) -> None:
    loader = DataLoader(Images(), 2, worker_init_fn=pids.note)
    settings = settings_of(loader)
    found = batch.first_batch(loader, settings.with_workers(4), drawn=settings)
    assert found.shared_bytes == 9 * found.bytes
    assert pids.noted == []
    found = batch.first_batch(loader, settings, drawn=settings.with_workers(1))
    assert found.shared_bytes == 0
    assert len(pids.noted) == 1


def test_an_empty_dataset_is_an_error() -> None:
    with pytest.raises(PtoolsError, match="no batch"):
        weighed(DataLoader([], batch_size=4))


def test_too_little_shared_memory_is_refused_before_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch, pids: Any
) -> None:
    monkeypatch.setattr(batch, "_free", lambda: 64 * MIB)
    loader = DataLoader(Images(), batch_size=4, num_workers=6, worker_init_fn=pids.note)
    with pytest.raises(PtoolsError) as caught:
        profile_loader(loader, budget=2)
    assert "156.00 MiB" in caught.value.message  # (6 x 2 + 1) x 4 x 3 MiB
    assert "64.00 MiB" in caught.value.message
    assert "num_workers=2" in str(caught.value.hint)  # (2 x 2 + 1) x 12 MiB
    assert pids.noted == []


def test_not_even_one_worker_may_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_free", lambda: 5 * MIB)
    loader = DataLoader(Images(), batch_size=4, num_workers=2)
    with pytest.raises(PtoolsError) as caught:
        profile_loader(loader, budget=2)
    assert "num_workers=0" in str(caught.value.hint)


SCRIPT = """
import torch
from torch.utils.data import DataLoader
from ptools.loader_profile import profile_loader

images = [torch.zeros(3, 512, 512)] * 10
try:
    profile_loader(DataLoader(images, batch_size=4, num_workers=4), budget=2)
except Exception as error:
    print(type(error).__name__, error)
profile_loader(DataLoader(images, batch_size=1, num_workers=1), budget=1, workers=[1])
print("done")
"""


def may_mount(folder: Path) -> bool:
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(words, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


def test_a_small_shared_memory_is_seen(folder: Path, write: Callable[[str, str], Path]) -> None:
    if not may_mount(folder):
        pytest.skip("mounting is not permitted")
    script = write("small.py", SCRIPT)
    command = f"mount -t tmpfs -o size=64m none /dev/shm && exec {sys.executable} {script}"
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(batch.__file__).parents[2])},
    )
    assert "PtoolsError 4 workers need 108.00 MiB of shared memory" in result.stdout, result.stderr
    assert "64.00 MiB" in result.stdout
    assert result.stdout.endswith("done\n"), result.stderr
