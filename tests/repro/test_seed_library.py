"""`seed_everything`, and the states of all generators."""

import io
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import ptools
from ptools.errors import PtoolsError, UsageError
from ptools.repro.seeding import environment, settings


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Random states, torch's flags and the environment as they were."""
    for name in ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    for flag in ("deterministic", "benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    torch.use_deterministic_algorithms(False)
    random.setstate(state[0])
    np.random.set_state(state[1])


def draws() -> tuple[float, float, float]:
    return random.gauss(0, 1), float(np.random.normal()), torch.randn(()).item()


def test_each_generator_draws_what_its_own_library_says() -> None:
    ptools.seed_everything(3)
    found = draws()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    assert found == draws()


def test_the_report_says_what_was_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "at_start", dict)
    report = ptools.seed_everything(3, deterministic=True)
    assert {"Python", "NumPy", "torch"} <= {*report.seeded}
    assert "PYTHONHASHSEED" in [one.name for one in report.too_late]
    assert os.environ["PYTHONHASHSEED"] == "3"  # for processes to come
    assert "CUBLAS_WORKSPACE_CONFIG" not in [one.name for one in report.too_late]
    assert "too late: PYTHONHASHSEED (order of sets" in str(report)
    assert report.to_dict()["seed"] == 3


def test_a_hash_seed_that_was_there_in_time_is_no_complaint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "12")
    monkeypatch.setattr(settings, "at_start", lambda: {"PYTHONHASHSEED": "12"})
    report = ptools.seed_everything(3)
    assert "PYTHONHASHSEED" not in [one.name for one in report.too_late]
    assert os.environ["PYTHONHASHSEED"] == "12"


@pytest.mark.parametrize("mode", [True, "warn"])
def test_deterministic_sets_torchs_flags(mode: Any) -> None:
    torch.backends.cudnn.benchmark = True
    ptools.seed_everything(3, deterministic=mode)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() is (mode == "warn")
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert torch.empty(8).isnan().all()  # filled, as torch documents it


def test_without_deterministic_the_flags_are_the_programs_own() -> None:
    torch.backends.cudnn.benchmark = True
    ptools.seed_everything(3)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "3", True, None])
def test_a_seed_that_not_all_generators_take_is_refused(seed: Any) -> None:
    with pytest.raises(UsageError, match="the seed"):
        ptools.seed_everything(seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_range_are_taken(seed: int) -> None:
    ptools.seed_everything(seed)
    assert torch.initial_seed() == seed


def test_states_go_through_a_safe_checkpoint() -> None:
    random.gauss(0, 1)  # Python and NumPy keep the second of two numbers
    np.random.normal()
    file = io.BytesIO()
    torch.save(ptools.rng_state(), file)
    first = draws()
    file.seek(0)
    ptools.set_rng_state(torch.load(file, weights_only=True))
    assert first == draws()


DAMAGES = {
    "no dict": lambda _: [1, 2],
    "foreign": lambda _: {"torch_rng_state": 1},
    "torch cut short": lambda state: state | {"torch": state["torch"][:-1]},
    "torch of floats": lambda state: state | {"torch": state["torch"].float()},
    "torch missing": lambda state: {key: state[key] for key in state if key != "torch"},
    "python cut short": lambda state: state | {"python": [3, state["python"][1][:-1], None]},
    "python with texts": lambda state: state | {"python": [3, ["a"] * 625, None]},
    "python's gauss": lambda state: state | {"python": [*state["python"][:2], "x"]},
    "numpy of another kind": lambda state: (
        state | {"numpy": state["numpy"] | {"bit_generator": "PCG64"}}
    ),
    "numpy without its key": lambda state: state | {"numpy": {"bit_generator": "MT19937"}},
    "cuda of texts": lambda state: state | {"cuda": ["a"]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_nothing_is_set(damage: str) -> None:
    state = DAMAGES[damage](ptools.rng_state())
    ptools.seed_everything(5)
    first = draws()
    ptools.seed_everything(5)
    with pytest.raises(PtoolsError, match="state"):
        ptools.set_rng_state(state)
    assert first == draws()


def test_a_state_of_a_machine_with_more_gpus_is_said() -> None:
    state = ptools.rng_state()
    first = draws()
    gpus = len(state["cuda"]) + 2
    with pytest.warns(UserWarning, match=f"a machine with {gpus} GPUs"):
        ptools.set_rng_state(state | {"cuda": [*state["cuda"], *[torch.zeros(16).byte()] * 2]})
    assert first == draws()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_states_of_every_gpu_come_back() -> None:
    ptools.seed_everything(3)
    state = ptools.rng_state()
    first = torch.rand(4, device="cuda")
    ptools.set_rng_state(state)
    assert torch.equal(first, torch.rand(4, device="cuda"))


def test_nothing_is_missing_where_all_was_set_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {one.name: one.value for one in environment.wanted(3, deterministic=True)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(settings, "at_start", lambda: variables)
    before = torch.backends.cuda.matmul.allow_tf32
    report = ptools.seed_everything(3, deterministic=True)
    torch.backends.cuda.matmul.allow_tf32 = before
    assert {one.state for one in report.settings} == {"in time"}
    assert "\n" not in str(report)


def test_what_the_user_has_set_stays() -> None:
    wanted = environment.wanted(1029, deterministic=True)
    theirs = {"PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "3,2", "OMP_DYNAMIC": "FALSE"}
    added, kept = environment.split(wanted, theirs)
    assert not added.keys() & theirs.keys()
    assert kept == [
        "PYTHONHASHSEED=random (runs may differ: order of sets, values of hash())",
        "OMP_NUM_THREADS=3,2",
    ]
    assert added["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
