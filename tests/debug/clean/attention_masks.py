"""Causal and padding masks of -inf, with a softmax over the rest of each row."""

import torch
from torch import nn


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, padding):
        q, k, v = self.qkv(x).chunk(3, -1)
        future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        scores = (q @ k.mT / 8**0.5).masked_fill(future, float("-inf"))
        x = x + scores.softmax(-1) @ v
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.attention(x, x, x, key_padding_mask=padding, need_weights=True)[0]


torch.manual_seed(0)
model, head = Causal(), nn.Linear(8, 5)
optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 1e-3)
for _ in range(4):
    x, padding = torch.randn(3, 6, 8), torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    logits = head(model(x, padding))
    logits[..., 0] = float("-inf")  # a class that is never allowed
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(1, 5, (18,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
