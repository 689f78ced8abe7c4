import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, get_worker_info

from ptools.errors import UsageError
from ptools.loader_profile import LoaderProfile, profile_loader


def brief(loader: Any, **words: Any) -> LoaderProfile:
    return profile_loader(loader, **({"budget": 0.5, "workers": [1]} | words))


@pytest.mark.parametrize("loader", [3, None, "train.py", b"x", object(), nn.Linear(1, 1), len])
def test_what_is_no_loader_is_refused(loader: Any) -> None:
    with pytest.raises(UsageError, match=f"no loader but of type {type(loader).__name__}"):
        profile_loader(loader)


@pytest.mark.parametrize("kind", [list, iter])
def test_any_other_iterable_has_a_rate(kind: Callable[[Any], Any]) -> None:
    profile = brief(kind([torch.zeros(4)] * 1000), step_ms=1)
    assert profile.current.rate > 0
    assert profile.with_step is not None and profile.with_step.rate < 1000
    assert profile.verdict is None and profile.stages == ()
    assert "no DataLoader" in profile.warnings[0]


def test_a_generator_is_not_used_up() -> None:
    batches = (torch.zeros(4) for _ in range(100))
    brief(batches)
    assert len(list(batches)) == 100


def test_a_dataset_is_given_a_loader(planted: Any) -> None:
    profile = brief(planted(100, wait=1e-3))
    assert profile.current.settings.batch_size == 32
    assert profile.batches_per_epoch == 4
    assert "batch_size=32" in profile.warnings[0]


@pytest.mark.parametrize("hold", [lambda loader: loader, lambda loader: [len, loader]])
def test_the_loader_that_another_wraps_is_measured(hold: Any, planted: Any) -> None:
    class Moved:
        def __init__(self, loader: Any) -> None:
            self.held = hold(loader)

        def __iter__(self) -> Any:
            pytest.fail("the wrapper is not measured")

    inner = DataLoader(planted(100, wait=2e-3), batch_size=4, num_workers=1)
    profile = brief(Moved(inner))
    assert profile.warnings[0].startswith("Moved wraps a DataLoader")
    assert profile.current.settings.num_workers == 1
    assert profile.stages


def test_settings_that_fail_are_a_warning_and_the_others_stand(planted: Any) -> None:
    def init(worker: int) -> None:
        info = get_worker_info()
        if info is not None and info.num_workers == 3:
            raise OSError("too many connections")

    loader = DataLoader(planted(100, wait=2e-3), batch_size=4, worker_init_fn=init)
    profile = profile_loader(loader, budget=6, workers=[3, 2])
    assert [trial.settings.num_workers for trial in profile.trials] == [2]
    (warning,) = [one for one in profile.warnings if "num_workers=3" in one]
    assert "too many connections" in warning
    assert profile.stages and profile.verdict is not None


def test_a_profile_tells_the_planted_time(planted: Any) -> None:
    loader = DataLoader(planted(200, wait=5e-3), batch_size=4, num_workers=2)
    profile = profile_loader(loader, budget=3, workers=[1, 4], target="mine")
    assert profile.target == "mine"
    assert profile.batches_per_epoch == 50
    assert profile.batch is not None and profile.batch.bytes == 4 * 4 * 8
    assert profile.current.rate == pytest.approx(400, rel=0.2)
    assert sum(one.waiting for one in profile.stages) == pytest.approx(5e-3, rel=0.1)
    assert not profile.interrupted
    assert profile.to_dict()["current"]["settings"]["num_workers"] == 2


def test_the_given_numbers_of_workers_are_tried_and_no_others(planted: Any) -> None:
    loader = DataLoader(planted(200, wait=5e-3), batch_size=4)
    profile = profile_loader(loader, budget=5, workers=[3, 2])
    assert [trial.settings.num_workers for trial in profile.trials] == [3, 2]
    assert profile.best is not None and profile.best.settings.num_workers == 3


def test_the_given_batch_sizes_are_tried(planted: Any) -> None:
    loader = DataLoader(planted(200, wait=2e-3), batch_size=4)
    profile = profile_loader(loader, budget=5, workers=[1], batch_sizes=[8, 16])
    sizes = [trial.settings.batch_size for trial in profile.trials]
    assert sizes[-2:] == [8, 16]


def test_batch_sizes_of_a_sampler_of_batches_are_refused() -> None:
    class Batches(BatchSampler):
        pass

    loader = DataLoader(range(20), batch_sampler=Batches(range(20), 4, False))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch size"):
        profile_loader(loader, batch_sizes=[8])


def test_a_step_and_a_model_are_too_much(planted: Any) -> None:
    with pytest.raises(UsageError, match="not both"):
        profile_loader(DataLoader(planted(4)), step_ms=5, model=nn.Identity())


def test_a_model_gives_the_step() -> None:
    model = nn.Linear(8, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile = brief(DataLoader(torch.randn(64, 8), batch_size=4), model=model)
    assert profile.with_step is not None and profile.with_step.step > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_states_stay_as_they_were() -> None:
    numpy = pytest.importorskip("numpy")
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(torch.randn(64, 8), 4, shuffle=True, num_workers=1, generator=generator)
    states = (
        random.getstate,
        lambda: [str(part) for part in numpy.random.get_state()],
        lambda: torch.get_rng_state().tolist(),
        lambda: generator.get_state().tolist(),
    )
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    before = [state() for state in states]
    brief(loader, model=model)
    assert [state() for state in states] == before


@pytest.mark.parametrize("after", ["where the time goes", "num_workers=2"])
def test_ctrl_c_leaves_what_was_measured(after: str, planted: Any) -> None:
    def interrupt(said: str) -> None:
        if said.startswith(after):
            raise KeyboardInterrupt

    loader = DataLoader(planted(100, wait=2e-3), batch_size=4)
    profile = profile_loader(loader, budget=6, workers=[2], progress=interrupt)
    assert profile.interrupted
    assert profile.current.rate > 0
    assert bool(profile.stages) == (after == "num_workers=2")


def test_ctrl_c_before_anything_was_measured_is_raised(planted: Any) -> None:
    def interrupt(said: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        brief(DataLoader(planted(100)), progress=interrupt)
