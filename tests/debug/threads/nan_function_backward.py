"""A backward written by hand divides by an empty support: https://github.com/pytorch/pytorch/issues/14923"""

import torch
from torch import nn


class Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        out = torch.relu(z - z.mean(1, keepdim=True))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        (out,) = ctx.saved_tensors
        support = (out > 0).float()
        total = (gradient * support).sum(1, keepdim=True)
        mean = total / support.sum(1, keepdim=True)  # <- made
        return support * (gradient - mean)


torch.manual_seed(0)
model = nn.Linear(3, 4)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(4):
    scores = model(torch.randn(5, 3))
    if step == 2:
        scores = scores * torch.tensor([[1.0], [1.0], [0.0], [1.0], [1.0]])
    weights = Sparsemax.apply(scores)  # <- forward
    loss = weights[:, 0].square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
