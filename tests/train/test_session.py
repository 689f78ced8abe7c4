"""A session does what the loop by hand does, to the last bit, on one process and on two."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from ptools import train
from ptools.errors import PtoolsError, UsageError
from ptools.train.loader import make_loader
from ptools.train.world import World, find_world

JOBS = Path(__file__).with_name("jobs.py")
VARIANTS = [
    f"{amp}, {accum} batches a step, {world} processes"
    for amp in ("no", "bf16")
    for accum in (1, 3)
    for world in (1, 2)
]


@pytest.fixture(scope="module")
def losses() -> dict[str, list[list[str]]]:
    """Of all variants: by hand, and ours."""
    done = subprocess.run([sys.executable, JOBS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, launched by nobody."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_JOB_ID", "PTOOLS_AMP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_those_of_the_loop_by_hand(variant: str, losses: Any) -> None:
    by_hand, ours = losses[variant]
    assert ours == by_hand
    assert len(set(ours)) > 10


def test_what_a_variant_changes_changes_the_losses(losses: Any) -> None:
    """Else the test above could not fail."""
    assert len({tuple(ours) for _, ours in losses.values()}) == len(VARIANTS)


def test_a_session_ends_before_the_model_that_it_wrapped() -> None:
    """Every third pair of processes used to hang when it let go of its model."""
    code = f"import sys; sys.path.insert(0, {str(JOBS.parent)!r}); import jobs\n"
    code += (
        "jobs.torch.set_num_threads(1)\nfor _ in range(10): jobs.forked(jobs.by_ptools, 'no', 1, 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_sees_every_sample_exactly_once(size: int) -> None:
    dataset = TensorDataset(torch.arange(20))
    seen: list[int] = []
    for rank in range(size):
        world = World(rank, size, rank, torch.device("cpu"))
        loader = make_loader(
            dataset, 4, world, 0, shuffle=False, train=False, drop_last=False, options={}
        )
        seen += [int(one) for (batch,) in loader for one in batch]
    assert sorted(seen) == list(range(20))


def test_each_epoch_is_shuffled_anew_and_a_restored_one_goes_on(alone: None) -> None:
    with train.session(seed=5) as s:
        dataset = TensorDataset(torch.arange(12))
        loader = s.loader(dataset, 3, shuffle=True)
        epochs = [[batch[0].tolist() for batch in loader] for _ in range(2)]
        assert epochs[0] != epochs[1]
        again = s.loader(dataset, 3, shuffle=True)
        again.load_state_dict({"epoch": 1, "batch": 2, "seed": 5})
        assert [batch[0].tolist() for batch in again] == epochs[1][2:]
        assert again.state_dict() == {"epoch": 2, "batch": 0, "seed": 5}


def test_slurm_sets_out_the_world_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    world = find_world("cpu")
    assert (world.rank, world.size, world.local_rank, world.is_main) == (3, 4, 1, False)


class Stream(IterableDataset[torch.Tensor]):
    """Seven samples, without a length."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(7.0).unsqueeze(1))


def test_the_last_group_of_a_loader_without_length_is_a_mean_too(alone: None) -> None:
    with train.session() as s:
        model = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loader = s.loader(Stream(), 2)
        step = s.stepper(model, optimizer, loader, accum=3)
        stepped, before = [], model.weight.item()
        for x in loader:
            with step:
                loss = model(x).mean()
            stepped.append(step(loss))
    # Batches [0 1] [2 3] [4 5] and [6]: mean gradients 2.5 and 6.
    assert stepped == [False, False, True, True]
    assert model.weight.item() == pytest.approx(before - 2.5 - 6)


def test_gradients_are_clipped_as_torch_clips_them(alone: None) -> None:
    with train.session() as s:
        model = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        step = s.stepper(model, torch.optim.SGD(model.parameters(), lr=1.0), clip=0.5)
        with step:
            loss = model(torch.tensor([[3.0, 4.0]])).sum()
        step(loss)
    assert model.weight.norm().item() == pytest.approx(0.5, rel=1e-5)


def test_several_optimizers_step_together(alone: None) -> None:
    with train.session() as s:
        model = nn.Linear(2, 2)
        halves = [torch.optim.SGD([one], lr=0.1) for one in model.parameters()]
        step = s.stepper(model, halves)
        before = [one.clone() for one in model.parameters()]
        with step:
            loss = model(torch.ones(1, 2)).sum()
        assert step(loss)
        assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_batch_norm_with_a_batch_of_one_says_what_to_do(alone: None) -> None:
    with train.session() as s:
        model = nn.BatchNorm1d(2)
        step = s.stepper(model, torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(PtoolsError, match="single value") as caught, step:
            model(torch.ones(1, 2))
        assert "drop_last" in str(caught.value.hint)
        with step:  # it is as it was before
            loss = model(torch.ones(2, 2)).sum()
        assert step(loss)


@pytest.mark.parametrize(("amp", "text"), [("fp16", "a CPU"), ("int4", "no amp")])
def test_an_amp_that_cannot_be_is_refused(amp: str, text: str, alone: None) -> None:
    with pytest.raises(UsageError, match=text) as caught, train.session(amp=amp, device="cpu"):
        pass
    assert "bf16" in str(caught.value.hint)


def test_more_processes_than_samples_are_refused() -> None:
    world = World(0, 8, 0, torch.device("cpu"))
    with pytest.raises(UsageError, match="5 samples cannot be divided among 8"):
        make_loader(
            TensorDataset(torch.arange(5)),
            1,
            world,
            0,
            shuffle=True,
            train=True,
            drop_last=False,
            options={},
        )


def test_an_iterable_dataset_is_not_divided_silently() -> None:
    world = World(0, 2, 0, torch.device("cpu"))
    with pytest.warns(UserWarning, match="takes every world_size-th sample from rank on"):
        make_loader(Stream(), 1, world, 0, shuffle=False, train=True, drop_last=False, options={})


def test_one_process_gathers_and_means_itself(alone: None) -> None:
    with train.session() as s:
        assert s.gather("a") == ["a"]
        assert s.mean(torch.tensor(2.5)) == 2.5
        assert s.scale_lr(0.1) == 0.1


@pytest.mark.parametrize(
    "wrong", [{"accum": 0}, {"accum": 1.5}, {"clip": 0.0}, {"clip": -1.0}, {"loader": [1]}]
)
def test_a_stepper_that_could_not_step_is_refused(wrong: Any, alone: None) -> None:
    with train.session() as s:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(UsageError):
            s.stepper(model, optimizer, **wrong)
        with pytest.raises(UsageError, match="without an optimizer"):
            s.stepper(model, [])


@pytest.mark.parametrize("rank", [0, 1])
def test_cuda_is_the_gpu_of_this_process(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert find_world("cuda").device == torch.device("cuda", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is no cuda:"):
        find_world("cuda")


def test_a_dataset_that_is_empty_or_has_no_length_is_refused(alone: None) -> None:
    with train.session() as s:
        with pytest.raises(UsageError, match="no samples"):
            s.loader(TensorDataset(torch.zeros(0)), 2)
        with pytest.raises(UsageError, match="object has no length"):
            s.loader(object(), 2)  # type: ignore[arg-type]
