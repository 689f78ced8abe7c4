"""Training under bfloat16 autocast, with a part of the model outside it."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(5):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(8, 6))
        again = model(torch.randn(8, 6))
    loss = nn.functional.cross_entropy(logits.float() + again.float(), torch.arange(8) % 4)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
