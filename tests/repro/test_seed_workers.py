"""What is drawn in DataLoader workers, and by generators that were made without a seed."""

import functools
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, dataloader

import ptools
from ptools.errors import UsageError
from ptools.repro.seeding import unseeded
from ptools.repro.seeding.streams import Stream
from ptools.repro.seeding.unseeded import seed_unseeded
from ptools.repro.seeding.workers import Seeded, seed_all_workers


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's, NumPy's and torch's functions as they were, and their random states."""
    monkeypatch.setattr(random.Random, "seed", random.Random.seed)
    monkeypatch.setattr(np.random, "default_rng", np.random.default_rng)
    monkeypatch.setattr(DataLoader, "_get_iterator", DataLoader._get_iterator)
    monkeypatch.setattr(unseeded, "_streams", [])
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])


class Augment:
    """A transform in the style of albumentations: it keeps its generator."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self) -> float:
        return float(self.generator.random())


class Points(Dataset[dict[str, float]]):
    def __init__(self) -> None:
        transform = Augment()
        self.transforms = [functools.partial(Augment.__call__, transform)]
        self.python = random.Random(0)
        self.torch = torch.Generator().manual_seed(0)
        self.older = np.random.RandomState(0)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, float]:
        return {
            "Generator": self.transforms[0](),
            "Random": self.python.random(),
            "torch.Generator": torch.rand((), generator=self.torch).item(),
            "RandomState": self.older.rand(),
            "random": random.random(),
            "np.random": np.random.rand(),
            "torch": torch.rand(()).item(),
        }


KEPT = ("Generator", "Random", "torch.Generator", "RandomState")
GLOBAL = ("random", "np.random", "torch")


def drawn(init: Any = None, epochs: int = 2, **settings: Any) -> dict[str, list[float]]:
    torch.manual_seed(7)
    loader = DataLoader(
        Subset(Points(), range(4)),
        batch_size=None,
        num_workers=2,
        worker_init_fn=init,
        multiprocessing_context="fork",
        **settings,
    )
    samples = [sample for _ in range(epochs) for sample in loader]
    return {kind: [sample[kind] for sample in samples] for kind in samples[0]}


def test_without_us_workers_and_epochs_draw_the_same(restored: None) -> None:
    found = drawn()
    assert {len({*found[kind]}) for kind in KEPT} == {2}  # of 8 draws


def test_seed_worker_gives_each_worker_and_epoch_a_stream_of_its_own(restored: None) -> None:
    found = drawn(ptools.seed_worker)
    assert {len({*found[kind]}) for kind in KEPT} == {8}
    assert found == drawn(ptools.seed_worker)


def test_what_torch_seeds_well_is_left_as_it_is(restored: None) -> None:
    plain, seeded = drawn(), drawn(ptools.seed_worker)
    assert [plain[kind] for kind in GLOBAL] == [seeded[kind] for kind in GLOBAL]


def test_two_ranks_draw_other_numbers(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(ptools.seed_worker)
    monkeypatch.setenv("RANK", "1")
    second = drawn(ptools.seed_worker)
    for kind in (*KEPT, *GLOBAL):
        assert not {*first[kind]} & {*second[kind]}


def test_seed_worker_outside_a_worker_says_where_it_belongs() -> None:
    with pytest.raises(UsageError, match="outside a DataLoader's worker") as told:
        ptools.seed_worker(0)
    assert "worker_init_fn=ptools.seed_worker" in str(told.value.hint)


def _theirs(worker_id: int) -> None:
    random.seed(100 + worker_id)


def test_every_loader_is_seeded_and_the_programs_own_function_runs_after(restored: None) -> None:
    seed_all_workers(dataloader, "off")
    found = drawn(_theirs, epochs=1)
    numbers = [random.Random(100 + worker).random() for worker in (0, 1)]
    assert found["random"][:2] == numbers
    assert len({*found["Generator"]}) == 4


def test_the_program_does_not_see_what_its_loader_was_given(restored: None) -> None:
    seed_all_workers(dataloader, "off")
    loader = DataLoader(Points(), num_workers=1, multiprocessing_context="fork")
    next(iter(loader))
    assert loader.worker_init_fn is None


def test_a_generator_of_the_programs_own_keeps_rank_out(
    restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_all_workers(dataloader, "off")
    monkeypatch.setenv("RANK", "1")
    found = drawn(generator=torch.Generator().manual_seed(3))
    monkeypatch.delenv("RANK")
    assert found == drawn(generator=torch.Generator().manual_seed(3))


def test_spawned_workers_can_be_told(restored: None) -> None:
    import pickle

    assert pickle.loads(pickle.dumps(Seeded(_theirs, True, "warn"))) == Seeded(
        _theirs, True, "warn"
    )


def test_generators_made_without_a_seed_repeat(restored: None) -> None:
    def some() -> list[float]:
        seed_unseeded(5)
        made = [np.random.default_rng().random() for _ in range(2)]
        return [*made, random.Random().random()]

    first = some()
    assert first == some()
    assert len({*first}) == 3


def test_a_generator_with_a_seed_is_as_ever(restored: None) -> None:
    plain = np.random.default_rng(3).random(), random.Random(3).random()
    seed_unseeded(5)
    assert plain == (np.random.default_rng(3).random(), random.Random(3).random())
    assert np.random.default_rng(seed=3).random() == plain[0]


def test_the_standard_librarys_own_generators_do_not_repeat(restored: None) -> None:
    """Two programs with one seed would try for the same names."""
    import tempfile

    names = []
    for _ in range(2):
        seed_unseeded(5)
        names.append(next(tempfile._RandomNameSequence()))  # type: ignore[attr-defined]
    assert names[0] != names[1]


def _in_fork(take: Any) -> int:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, str(take()).encode())
        os._exit(0)
    os.wait()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def test_forked_processes_take_other_seeds_that_repeat() -> None:
    found = []
    for _ in range(2):
        stream = Stream(1)
        found.append([_in_fork(stream.take), _in_fork(stream.take), stream.take()])
    assert found[0] == found[1]
    assert len({*found[0]}) == 3
