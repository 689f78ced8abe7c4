"""An optimizer that calls a closure, often more than once a step."""

import torch
from torch import nn

torch.manual_seed(0)
x = torch.linspace(-1, 1, 32)[:, None]
model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = (model(x) - torch.sin(3 * x)).square().mean()
    loss.backward()
    return loss


for _ in range(6):
    print(optimizer.step(closure).item())
