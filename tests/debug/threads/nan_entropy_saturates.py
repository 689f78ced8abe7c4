"""A cross entropy written by hand, after hundreds of steps 0 * log(0): https://github.com/tensorflow/models/pull/181"""

import torch
from torch import nn


class Entropy(nn.Module):
    def forward(self, logits, labels):
        p = torch.sigmoid(logits)
        missed = torch.log(1 - p)  # <- born
        return -(labels * torch.log(p) + (1 - labels) * missed).mean()  # <- made


torch.manual_seed(0)
x = torch.tensor([[-1.0], [1.0]])
labels = (x > 0).float()
model, criterion = nn.Linear(1, 1), Entropy()
optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.99)
for step in range(700):
    loss = criterion(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(step, loss.item())
