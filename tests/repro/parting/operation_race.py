"""A hand-written kernel adds in the order in which its threads come."""
# class: operation

import threading

import torch
from torch import nn


@torch.library.custom_op("race::sum_rows", mutates_args=())
def sum_rows(x: torch.Tensor) -> torch.Tensor:
    jitter = threading.get_native_id() % 4099  # stands for the order of the threads
    return x.sum(1) * (1 + jitter * 1e-6)


sum_rows.register_autograd(lambda ctx, grad: grad[:, None].expand(-1, 8))
torch.manual_seed(0)
model = nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    loss = sum_rows(model(torch.randn(6, 8))).square().mean()  # <- parts
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
