"""Two workers that are started anew."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Named(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        noise = torch.rand(8)
        return {"x": noise + index, "label": index % 4, "name": f"image {index}"}


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    loader = DataLoader(Named(), 4, shuffle=True, num_workers=2, multiprocessing_context="spawn")
    for _ in range(2):
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["x"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
