"""MultiheadAttention on a sentence that is all padding: https://github.com/pytorch/pytorch/issues/41508"""

import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, words):
        x = self.embed(words)
        x, _ = self.attention(x, x, x, key_padding_mask=words == 0)  # <- made
        return self.out(x.mean(1))


torch.manual_seed(0)
model = Encoder()
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for step in range(5):
    words = torch.randint(1, 10, (4, 6))
    words[:, 4:] = 0
    if step == 3:
        words[1] = 0
    loss = nn.functional.cross_entropy(model(words), torch.tensor([0, 1, 0, 1]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
