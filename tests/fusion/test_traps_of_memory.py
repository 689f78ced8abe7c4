"""A convolution's output that others see, keep, or write to before its batch norm reads it."""

from collections import UserDict
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A convolution, and a batch norm that a subclass leads its output to, or does not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.kept = []

    def forward(self, x):
        return self.bn(self.conv(x))


class Added(Pair):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class Returned(Pair):
    def forward(self, x):
        y = self.conv(x)
        return {"norm": self.bn(y), "features": [y]}


class Cached(Pair):
    def forward(self, x):
        self.features = self.conv(x)
        return self.bn(self.features)


class Listed(Pair):
    def forward(self, x):
        self.kept = [UserDict(features=self.conv(x))]
        return self.bn(self.kept[0]["features"])


@dataclass
class Output:
    norm: torch.Tensor
    features: torch.Tensor


class InADataclass(Pair):
    def forward(self, x):
        y = self.conv(x)
        return Output(self.bn(y), y)


class ReadByPython(Pair):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) * (y.flatten()[0].item() + 2)


class WrittenThroughASlice(Pair):
    def forward(self, x):
        y = self.conv(x)
        y[:, 0] = 0
        return self.bn(y)


class WrittenThroughAView(Pair):
    def forward(self, x):
        y = self.conv(x)
        y.view(len(x), 4, -1)[:, :2].add_(1)
        return self.bn(y)


class WrittenThroughData(Pair):
    def forward(self, x):
        y = self.conv(x)
        y.data.clamp_(min=0)
        return self.bn(y)


class WrittenThroughNumpy(Pair):
    def forward(self, x):
        y = self.conv(x)
        numpy.maximum(y.numpy(), 0, out=y.numpy())
        return self.bn(y)


class WrittenAfterwards(Pair):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        y.mul_(2)
        return z - y


class InPlaceActivation(Pair):
    def forward(self, x):
        return self.bn(self.conv(x).relu_())


class RoundTrip(Pair):
    def forward(self, x):
        return self.bn(torch.from_numpy(self.conv(x).detach().numpy().copy()))


class Detached(Pair):
    def forward(self, x):
        return self.bn(self.conv(x).detach().data.contiguous())


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (Added, 1, 1),
        (Returned, 1, 1),
        (Cached, 1, 1),
        (Listed, 1, 1),
        (InADataclass, 1, 1),
        (ReadByPython, 1, 1),
        (WrittenThroughASlice, 1, 1),
        (WrittenThroughAView, 1, 1),
        (WrittenThroughData, 1, 1),
        (WrittenThroughNumpy, 1, 1),
        (WrittenAfterwards, 1, 1),
        (InPlaceActivation, 1, 1),
        (RoundTrip, 1, 1),
        (Detached, 1, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_output_stays_and_no_norm_is_folded_that_must_stay(assert_norms, model, before, after):
    assert_norms(model(), X, before=before, after=after)
