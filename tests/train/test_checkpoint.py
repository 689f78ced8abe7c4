"""A training that was saved and loaded goes on as if nothing had been."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ptools import train
from ptools.errors import PtoolsError, UsageError
from ptools.train import checkpoint
from ptools.train.world import World

FILE = "last.ckpt"


def training(s: Any, until: int, stop_after: int | None = None, resume: bool = False) -> list[str]:
    """Losses of a training with dropout, a schedule and accumulation, saved after each step."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    loader = s.loader(TensorDataset(x, x.sum(1).gt(0).long()), 4, shuffle=True)
    model = s.model(nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = train.warmup(optimizer, 12)
    step = s.stepper(model, optimizer, loader, accum=2)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    steps = s.load(FILE, **parts)["steps"] if resume else 0
    losses = []
    while loader.epoch < until:
        for inputs, labels in loader:
            with step:
                loss = F.cross_entropy(model(inputs), labels)
            losses.append(loss.item().hex())
            if step(loss):
                schedule.step()
                steps += 1
                s.save(FILE, steps=steps, **parts)
                if steps == stop_after:
                    return losses
    return losses


@pytest.mark.parametrize("after", [2, 5, 7])
def test_losses_go_on_bit_for_bit(after: int, folder: Path) -> None:
    with train.session() as s:
        whole = training(s, 3)
    with train.session() as s:
        first = training(s, 3, stop_after=after)
    with train.session(seed=9) as s:
        torch.rand(7)  # whatever was drawn before loading
        rest = training(s, 3, resume=True)
    assert first + rest == whole


def test_a_missing_part_is_named(folder: Path) -> None:
    with train.session() as s:
        s.save(FILE, model=nn.Linear(1, 1))
        with pytest.raises(UsageError, match="holds no optimizer") as caught:
            s.load(FILE, optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0))
        assert "model" in str(caught.value.hint)


def test_no_file_a_damaged_and_a_foreign_one_are_told(folder: Path) -> None:
    with train.session() as s:
        with pytest.raises(UsageError, match="no checkpoint none"):
            s.load("none.ckpt")
        Path(FILE).write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(PtoolsError, match="no whole checkpoint"):
            s.load(FILE)
        torch.save({"state_dict": {}}, FILE)
        with pytest.raises(PtoolsError, match="not written by session"):
            s.load(FILE)


def test_of_another_world_the_epoch_begins_anew_and_the_weights_are_there(folder: Path) -> None:
    saved = {
        "parts": {"model": {"weight": torch.full((1, 1), 7.0)}},
        "own": {"loader0": {"epoch": 3, "batch": 9, "seed": 4}},
        "generators": [{}, {}],
        "waiting": [[], []],
    }
    torch.save(saved, FILE)
    model = nn.Linear(1, 1, bias=False)
    with train.session() as s:
        loader = s.loader(TensorDataset(torch.arange(4)), 1)
        s.load(FILE, model=model)
    assert model.weight.item() == 7.0
    assert loader.state_dict() == {"epoch": 3, "batch": 0, "seed": 4}


def test_a_save_that_fails_leaves_the_file_of_before(folder: Path) -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    checkpoint.save(Path(FILE), {"steps": 1}, {}, world)
    before = Path(FILE).read_bytes()
    with pytest.raises(UsageError, match="no plain value"):
        checkpoint.save(Path(FILE), {"steps": lambda: 1}, {}, world)
    assert Path(FILE).read_bytes() == before
    assert [one.name for one in Path().iterdir()] == [FILE]


def test_evaluation_leaves_modes_as_they_were() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with train.session(amp="bf16") as s, s.evaluating(model) as bare:
        assert bare is model and not model.training
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    assert [one.training for one in model.modules()] == [True, True, False]


def test_a_step_that_is_not_complete_is_restored(folder: Path) -> None:
    def trained(file: str | None, batches: int) -> torch.Tensor:
        """A step of three batches, of which so many are left."""
        with train.session() as s:
            net = nn.Linear(1, 1, bias=False)
            optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
            step = s.stepper(net, optimizer, accum=3)
            if file is not None:
                s.load(file, net=net, optimizer=optimizer)
            for number in range(3 - batches, 3):
                with step:
                    loss = net(torch.full((1, 1), float(number))).sum()
                assert step(loss) == (number == 2)
                if number == 1 and file is None:
                    s.save("half.ckpt", net=net, optimizer=optimizer)
            return net.weight.detach()

    assert torch.equal(trained(None, 3), trained("half.ckpt", 1))


def test_what_could_not_be_loaded_again_is_not_saved(folder: Path) -> None:
    with train.session() as s, pytest.raises(UsageError, match="args is of Namespace") as caught:
        s.save("a.ckpt", args=argparse.Namespace(lr=0.1))
    assert "vars(args)" in str(caught.value.hint) and not Path("a.ckpt").exists()
