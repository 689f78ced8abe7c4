"""LBFGS, which calls its closure several times a step, and SGD with a closure."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
x, y = torch.randn(16, 3), torch.randn(16, 1)
for optimizer in (
    torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
    torch.optim.SGD(model.parameters(), 0.1),
):

    def closure():
        optimizer.zero_grad()  # noqa: B023 -- called before the next turn
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        print(optimizer.step(closure).item().hex())
