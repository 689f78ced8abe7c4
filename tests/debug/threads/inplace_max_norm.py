"""An embedding with max_norm writes its weight in the forward pass: https://github.com/pytorch/pytorch/issues/26596"""

import torch
from torch import nn

torch.manual_seed(0)
embedding = nn.Embedding(3, 5, max_norm=1.0)
projection = torch.randn(7, 5, requires_grad=True)
optimizer = torch.optim.Adam([*embedding.parameters(), projection], 1e-3)
every = embedding.weight @ projection.T  # <- saved
chosen = embedding(torch.tensor([1, 2])) @ projection.T  # <- changed
loss = (every.unsqueeze(0) + chosen.unsqueeze(1)).sigmoid().mean()
loss.backward()
optimizer.step()
