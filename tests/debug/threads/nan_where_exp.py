"""torch.where does not stop the gradient of the branch not taken: https://github.com/pytorch/pytorch/issues/68425"""

import torch
from torch import nn


class Elu(nn.Module):
    def forward(self, x):
        below = torch.exp(x) - 1  # <- born # <- made
        return torch.where(x <= 0, below, x)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 4), Elu(), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), 1e-6)
for step in range(4):
    x = torch.randn(8, 2) * 10.0**step
    loss = model(x).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
