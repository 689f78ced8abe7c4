"""The names of the layers to train stand in a set, and so the optimizer has them in any order."""
# class: hash

import torch
from torch import nn

torch.manual_seed(0)
model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ["query", "key", "value", "out", "gate"]})
trained = {"query", "key", "value", "out", "gate"}
weights = [model[name].weight for name in trained]
optimizer = torch.optim.SGD(weights, 1e-2, momentum=0.9)  # <- parts
for _ in range(4):
    x = torch.randn(6, 8)
    for name in ["query", "key", "value", "out", "gate"]:
        x = model[name](x).tanh()
    loss = x.square().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(list(optimizer.param_groups[0]["params"]), 0.1)
    optimizer.step()
