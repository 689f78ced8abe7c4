"""Missing targets masked out after the square, not before: https://github.com/pytorch/pytorch/issues/64305"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(1, 2, bias=False)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
x = torch.tensor([[0.5], [-1.0]])
y = torch.tensor([[float("nan"), 0.0], [1.0, 2.0]])
known = ~torch.isnan(y)
for step in range(2):
    errors = torch.square(model(x) - y)  # <- made
    loss = errors[known].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
