"""Dropout in place on what a ReLU has saved: https://github.com/BierOne/bottom-up-attention-vqa/issues/6"""

import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.activation, self.dropout = nn.ReLU(), nn.Dropout(0.5, inplace=True)

    def forward(self, x):
        hidden = self.activation(self.first(x))  # <- saved
        hidden = self.dropout(hidden)  # <- changed
        return self.last(hidden)


torch.manual_seed(0)
model = Classifier()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
loss = nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.arange(6) % 3)
loss.backward()
optimizer.step()
