"""A power below 1 has an infinite slope at 0, also where it is masked: https://github.com/asteroid-team/asteroid/pull/121"""

import torch
from torch import nn


def loudness(spectrum):
    return spectrum.pow(0.3)  # <- made # <- born


torch.manual_seed(0)
model = nn.Linear(8, 8, bias=False)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
for step in range(4):
    frames = torch.rand(5, 8)
    if step == 2:
        frames[3] = 0  # silence
    spectrum = model(frames).abs()
    loud = spectrum.sum(1, keepdim=True) > 0
    loss = (loudness(spectrum) * loud).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
