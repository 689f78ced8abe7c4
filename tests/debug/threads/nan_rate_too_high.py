"""A learning rate too high: the loss overflows after hundreds of steps: https://github.com/CharlieDinh/pFedMe/issues/11"""

import torch
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(64, 3), torch.randn(64, 1)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.78)
for step in range(800):
    error = model(x) - y
    loss = error.pow(2).mean()  # <- made
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(step, loss.item())
