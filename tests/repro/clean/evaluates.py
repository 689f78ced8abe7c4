"""Evaluation between epochs, under no_grad and inference_mode, with the best weights kept."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
data = TensorDataset(torch.randn(60, 8), torch.arange(60) % 4)
train, held_out = random_split(data, [40, 20])
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.RAdam(model.parameters(), 1e-2)
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
best, weights = float("inf"), None
for epoch in range(3):
    model.train()
    for x, y in DataLoader(train, 10, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad() if epoch % 2 else torch.inference_mode():
        losses = [nn.functional.cross_entropy(model(x), y) for x, y in DataLoader(held_out, 10)]
        loss = torch.stack(losses).mean().item()
    plateau.step(loss)
    if loss < best:
        best, weights = loss, copy.deepcopy(model.state_dict())
model.load_state_dict(weights)
