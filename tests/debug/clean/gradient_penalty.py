"""A gradient penalty by double backward, with eps under its root, and a Hessian's product."""

import torch
from torch import nn

torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
for _ in range(4):
    x = torch.randn(6, 2, requires_grad=True)
    value = critic(x).sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    norm = (slope.square().sum(1) + 1e-12).sqrt()
    loss = (norm - 1).square().mean() + value.square()
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in critic.parameters()]
    product = torch.autograd.grad(slope.sum(), x)[0].sum()
    optimizer.step()
    print(loss.item().hex(), product.item().hex(), sum(one.sum() for one in first).item().hex())
