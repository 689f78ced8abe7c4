"""A first step towards sharpness, and a second backward of the same loss: https://github.com/kozistr/pytorch_optimizer/issues/64"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
x, y = torch.randn(16, 4), torch.randn(16, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)


def climb(rho):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.grad, alpha=rho)  # <- changed


loss = (model(x) - y).square().mean()  # <- saved
loss.backward(retain_graph=True)
climb(0.05)
optimizer.zero_grad()
loss.backward()
optimizer.step()
