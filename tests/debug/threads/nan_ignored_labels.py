"""Cross entropy when each label is to be ignored: https://github.com/pytorch/pytorch/issues/75181"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12))
criterion = nn.CrossEntropyLoss(ignore_index=-100)
optimizer = torch.optim.AdamW(model.parameters())
for step in range(5):
    words = torch.randint(12, (2, 7))
    labels = words.roll(-1, 1)
    prompt = 7 if step == 3 else 4  # a prompt so long that no answer is left
    labels[:, :prompt] = -100
    loss = criterion(model(words).flatten(0, 1), labels.flatten())  # <- made
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
