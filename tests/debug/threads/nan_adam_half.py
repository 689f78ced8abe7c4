"""Adam's eps of 1e-8 is 0 in half precision, and so is a gradient's square: https://github.com/matanbt/TROPT/pull/8"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 2).half()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(3):
    x = torch.randn(8, 4).half()
    x[:, 3] = 0  # a feature that is never there: its weights get no gradient
    loss = nn.functional.cross_entropy(model(x).float(), torch.randint(2, (8,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- made
    print(step, loss.item())
