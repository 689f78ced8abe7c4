"""A DataLoader with two forked workers, whose samples are computed with torch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Waves(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        t = torch.linspace(0, 1, 8) * index
        x = torch.sin(t)
        x += torch.log(t.clamp(min=0)).clamp(min=-3)  # log(0), clamped
        return {"wave": x, "label": index % 3}


torch.manual_seed(0)
model = nn.Linear(8, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.05)
loader = DataLoader(
    Waves(), batch_size=6, shuffle=True, num_workers=2, multiprocessing_context="fork"
)
for _ in range(2):
    for batch in loader:
        loss = nn.functional.cross_entropy(model(batch["wave"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(loss.item().hex())
