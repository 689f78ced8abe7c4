"""A parameter made of memory that nobody filled: https://github.com/gordicaleksa/pytorch-GAT/issues/11"""

import torch
from torch import nn

torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # memory that nobody filled holds NaN


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.bias = nn.Parameter(torch.empty(3))  # <- made

    def forward(self, x):
        return self.linear(x) + self.bias


model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), Head())
optimizer = torch.optim.Adam(model.parameters())
for step in range(2):
    loss = nn.functional.cross_entropy(model(torch.randn(5, 2)), torch.tensor([0, 1, 2, 0, 1]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
