"""Models in which a convolution stands beside a batch norm: some of them may not be folded."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A convolution, and a batch norm that a subclass leads its output to, or does not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


class TwoNorms(Pair):
    def __init__(self):
        super().__init__()
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn2(self.conv(F.relu(self.bn(self.conv(x)))))


class OneConvolutionForTwoNorms(TwoNorms):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + self.bn2(y).relu()


class OrderOfDefinition(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn1(self.conv2(F.relu(self.bn2(self.conv1(x)))))


class PreActivation(OrderOfDefinition):
    def forward(self, x):
        x = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(x)))


class WeightUsedElsewhere(Pair):
    def forward(self, x):
        return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1).relu()


class NormsWeightUsedElsewhere(Pair):
    def forward(self, x):
        return self.bn(self.conv(x)) * self.bn.weight.sum()


class AsFunction(Pair):
    def forward(self, x):
        bn = self.bn
        return F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)


class Recurrent(Pair):
    def forward(self, x):
        for _ in range(3):
            x = F.relu(self.bn(self.conv(x)))
        return x


class RecurrentWithAnExit(Pair):
    def forward(self, x):
        for step in range(3):
            y = self.conv(x)
            x = F.relu(self.bn(y)) if step < 2 else y
        return x


class SharedNorm(Pair):
    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x))) + F.relu(self.bn(self.conv2(x)))


class Siamese(Pair):
    def forward(self, x):
        a, b = super().forward(x), super().forward(x.flip(-1))
        return (a - b).abs()


class TiedWeights(OrderOfDefinition):
    def __init__(self):
        super().__init__()
        self.conv2.weight = self.conv1.weight

    def forward(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Checkpointed(Pair):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class DecidedByData(TwoNorms):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) if x.amax() < 8 else self.bn2(y)


class OtherwiseUsedAlone(Pair):
    def forward(self, x, alone=False):
        if alone:
            return self.conv(x).relu()
        return self.bn(self.conv(x))


class SkippedByData(Pair):
    def forward(self, x):
        y = self.conv(x)
        if y.mean() < 50:
            y = self.bn(y)
        return y


class CatchesAnError(Pair):
    def forward(self, x):
        try:
            self.bn(self.conv(x)[:, :3])
        except RuntimeError:
            return self.bn(self.conv(x))


def shared_sequential():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(block, nn.Sigmoid(), block)


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (Pair, 1, 0),
        (TwoNorms, 2, 2),
        (OneConvolutionForTwoNorms, 2, 2),
        (OrderOfDefinition, 2, 0),
        (PreActivation, 2, 2),
        (WeightUsedElsewhere, 1, 1),
        (NormsWeightUsedElsewhere, 1, 1),
        (AsFunction, 1, 1),
        (Recurrent, 3, 0),
        (RecurrentWithAnExit, 2, 2),
        (SharedNorm, 2, 2),
        (Siamese, 2, 0),
        (TiedWeights, 2, 0),
        (Checkpointed, 1, 0),
        (DecidedByData, 1, 1),
        (SkippedByData, 1, 1),
        (OtherwiseUsedAlone, 1, 1),
        (CatchesAnError, 1, 1),
        (shared_sequential, 2, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_output_stays_and_no_norm_is_folded_that_must_stay(assert_norms, model, before, after):
    assert_norms(model(), X, before=before, after=after)
