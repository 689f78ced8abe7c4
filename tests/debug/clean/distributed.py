"""DDP with batch norm, two forward passes and unused parameters; one process or several."""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
store = dist.FileStore(os.environ.get("STORE", f"{tempfile.mkdtemp()}/store"), size)
dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
torch.manual_seed(rank)
net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 2))
net.add_module("scale", nn.BatchNorm1d(2))
model = DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(4):
    loss = model(torch.randn(6, 4)).square().mean() - model(torch.rand(6, 4)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
dist.destroy_process_group()
