"""Learning rates are those of Goyal et al. (1706.02677)."""

from itertools import pairwise

import pytest
import torch

from ptools.errors import UsageError
from ptools.train import scale_lr, warmup


def test_the_papers_own_figures() -> None:
    """Section 5.1: 0.1 for 256 samples is 3.2 for 8,192, reached from 0.1 in five epochs."""
    assert scale_lr(0.1, batch=8192, base_batch=256) == pytest.approx(3.2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.2)
    schedule = warmup(optimizer, steps=5, start=256 / 8192)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    steps = [after - before for before, after in pairwise(rates[:6])]
    assert steps == pytest.approx([3.1 / 5] * 5)
    assert rates[5:] == pytest.approx([3.2, 3.2])


def test_the_root_is_for_adam() -> None:
    assert scale_lr(1e-3, batch=1024, base_batch=256, rule="sqrt") == pytest.approx(2e-3)


@pytest.mark.parametrize(("batch", "rule"), [(0, "linear"), (8, "cubic")])
def test_nonsense_is_refused(batch: int, rule: str) -> None:
    with pytest.raises(UsageError):
        scale_lr(0.1, batch, 8, rule)
