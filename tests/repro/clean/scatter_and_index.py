"""scatter_add, index_add, index_put and bincount: on a CPU they repeat."""

import torch
from torch import nn

torch.manual_seed(0)
table = nn.Parameter(torch.randn(20, 8))
optimizer = torch.optim.Adam([table], 1e-2)
for _ in range(10):
    index = torch.randint(20, (60,))
    rows = torch.zeros(20, 8).index_add(0, index, table[index])
    rows = rows.scatter_add(0, index[:, None].expand(-1, 8), table[index].tanh())
    counts = torch.bincount(index, minlength=20).clamp(min=1)
    means = torch.zeros(20, 8).index_put((index,), table[index], accumulate=True)
    loss = ((rows + means) / counts[:, None]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
