"""Mode `autograd`: the numbers of gradients and outputs, as a table and for TensorBoard."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

TEXT = """
import torch
from torch import nn
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), 0.5)
for step in range({steps}):
    loss = net(torch.full((2, 4), 0.5)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def rows(table: Any) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def by_hand() -> tuple[Any, Any]:
    """The network of TEXT after the backward of its first step, and its hidden values."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    hidden = net[0](torch.full((2, 4), 0.5))
    net[2](net[1](hidden)).pow(2).mean().backward()
    return net, hidden


def test_the_tables_hold_what_plain_torch_computes(follow: Any) -> None:
    seen = follow(TEXT.format(steps=1))
    net, hidden = by_hand()
    gradients, outputs = map(rows, seen.tables)
    parts = [net[0].weight.grad.flatten(), net[0].bias.grad]
    whole = torch.cat(parts)
    row = gradients["Sequential.0"]
    assert row["norm first"] == row["last"] == f"{whole.norm():.3g}"
    assert row["largest value"] == f"{whole.abs().max():.3g}"
    assert row["zeros %"] == f"{100 * (whole == 0).float().mean():.3g}"
    weights = torch.cat([net[0].weight.detach().flatten(), net[0].bias.detach()])
    assert float(row["step/weight"]) == pytest.approx(
        (0.5 * whole.norm() / weights.norm()).item(), rel=0.01
    )
    assert outputs["Sequential.0"]["mean"] == f"{hidden.mean():.3g}"
    assert outputs["Sequential.0"]["std"] == f"{hidden.std(correction=0):.3g}"


def test_steps_are_sampled_ever_more_rarely(follow: Any) -> None:
    seen = follow(TEXT.format(steps=20))
    assert "at steps 0, 1, 2, 4, 8, 16" in seen.tables[0].title


def test_vanishing_gradients_are_called_so_though_their_squares_are_zero(follow: Any) -> None:
    text = TEXT.replace("nn.Sequential(", "nn.Sequential(*deep(), ").replace(
        "net =",
        "def deep():\n"
        "    return [m for _ in range(30) for m in (nn.Linear(4, 4), nn.Sigmoid())]\n"
        "net =",
    )
    seen = follow(text.format(steps=4))
    gradients = rows(seen.tables[0])
    assert gradients["Sequential.0"][""] == "vanishing"
    assert 0 < float(gradients["Sequential.0"]["norm first"]) < 1e-20
    assert gradients["Sequential.62"][""] == ""


def test_very_many_modules_are_folded(follow: Any) -> None:
    text = """
import torch
from torch import nn
net = nn.Sequential(*[nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)]) for _ in range(2)])
optimizer = torch.optim.SGD(net.parameters(), 0.1)
net(torch.ones(1, 2)).sum().backward()
optimizer.step()
"""
    assert list(rows(follow(text).tables[0])) == ["Sequential.0", "Sequential.1"]


def test_tensorboard_reads_the_histograms_back(follow: Any, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(TEXT.format(steps=6), tensorboard="runs")
    events = EventAccumulator("runs", size_guidance={"histograms": 0})
    events.Reload()
    names = {"0.weight", "0.bias", "2.weight", "2.bias"}
    expected = {f"{g}/Sequential.{n}" for g in ("gradients", "weights") for n in names}
    expected |= {"outputs/Sequential.0", "outputs/Sequential.2"}
    assert set(events.Tags()["histograms"]) == expected
    taken = events.Histograms("gradients/Sequential.0.weight")
    assert [one.step for one in taken] == [0, 1, 2, 4]
    gradient = by_hand()[0][0].weight.grad
    first = taken[0].histogram_value
    assert first.num == gradient.numel() == sum(first.bucket)
    assert first.sum == pytest.approx(gradient.sum().item())
    assert (first.min, first.max) == (gradient.min().item(), gradient.max().item())
    wanted = int((gradient <= first.bucket_limit[30]).sum())
    assert sum(first.bucket[:31]) == pytest.approx(wanted, abs=1)
    events.Reload()


def test_a_folder_that_cannot_be_written_to_is_noted(follow: Any, folder: Path) -> None:
    (folder / "runs").write_text("a file")
    seen = follow(TEXT.format(steps=1), tensorboard="runs")
    assert any("no histograms: cannot write to runs" in note for note in seen.notes)
