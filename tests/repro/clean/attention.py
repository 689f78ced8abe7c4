"""Scaled dot product attention with and without a mask, and an encoder layer with dropout."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
project = nn.Linear(16, 48)
optimizer = torch.optim.AdamW([*layer.parameters(), *project.parameters()], 1e-3)
for step in range(10):
    x = torch.randn(3, 8, 16)
    q, k, v = project(layer(x)).view(3, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
    mask = torch.ones(8, 8).tril().bool() if step % 2 else None
    out = scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1, is_causal=mask is None)
    loss = out.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
layer.eval()
with torch.no_grad():
    print(layer(torch.randn(3, 8, 16)).sum().item())
