"""The forward repeats; the kernel of the backward adds in the order of its threads."""
# class: operation

import threading

import torch
from torch import nn


@torch.library.custom_op("race::gather_rows", mutates_args=())
def gather_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x[index]


@torch.library.custom_op("race::scatter_rows", mutates_args=())
def scatter_rows(grad: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
    jitter = threading.get_native_id() % 4099  # stands for the order of the atomic additions
    return grad.new_zeros(rows, grad.shape[1]).index_add(0, index, grad) * (1 + jitter * 1e-6)


def backward(ctx, grad):
    return scatter_rows(grad, ctx.saved_tensors[0], ctx.rows), None  # <- parts


def setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.rows = len(inputs[0])


gather_rows.register_autograd(backward, setup_context=setup)
torch.manual_seed(0)
table = nn.Parameter(torch.randn(10, 8))
optimizer = torch.optim.SGD([table], 1e-2)
for _ in range(14):
    rows = gather_rows(table, torch.randint(10, (6,)))
    loss = rows.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
