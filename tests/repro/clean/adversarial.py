"""Two optimizers, noise, detached samples, and moving averages of the generator."""

import copy

import torch
from torch import nn

torch.manual_seed(0)
maker = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
judge = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1))
average = copy.deepcopy(maker).requires_grad_(False)
of_maker = torch.optim.Adam(maker.parameters(), 1e-3, betas=(0.5, 0.999))
of_judge = torch.optim.Adam(judge.parameters(), 1e-3, betas=(0.5, 0.999))
score = nn.BCEWithLogitsLoss()
for _ in range(12):
    real, fake = torch.randn(6, 8) + 1, maker(torch.randn(6, 4))
    of_judge.zero_grad()
    score(judge(real), torch.ones(6, 1)).backward()
    score(judge(fake.detach()), torch.zeros(6, 1)).backward()
    of_judge.step()
    of_maker.zero_grad()
    score(judge(fake), torch.ones(6, 1)).backward()
    of_maker.step()
    with torch.no_grad():
        for kept, new in zip(average.parameters(), maker.parameters(), strict=True):
            kept.lerp_(new, 0.01)
print(average.eval()(torch.randn(2, 4)).sum().item())
