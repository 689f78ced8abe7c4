"""A softmax over a row that is masked everywhere: https://github.com/facebookresearch/Mask2Former/issues/243"""

import torch
from torch import nn


class MaskedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, queries, pixels, outside):
        scores = self.q(queries) @ self.k(pixels).T / 2
        scores = scores.masked_fill(outside, float("-inf"))  # <- born
        weights = scores.softmax(-1)  # <- made
        return weights @ self.v(pixels)


torch.manual_seed(0)
model = nn.ModuleDict({"attention": MaskedAttention(), "head": nn.Linear(4, 1)})
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(4):
    outside = torch.rand(3, 5) < 0.3
    outside[:, 0] = False
    outside[2] |= step == 2  # no pixel is of this class
    features = model["attention"](torch.randn(3, 4), torch.randn(5, 4), outside)
    loss = model["head"](features).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
