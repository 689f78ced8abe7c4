"""The program forks itself: children compute on their own, and their answers are sorted."""

import multiprocessing
import os

import torch
from torch import nn


def squared(number):
    return number, float(torch.tensor(float(number)).square())


torch.manual_seed(0)
torch.set_num_threads(1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    answers = sorted(pool.imap_unordered(squared, range(24)))
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
x = torch.tensor([answer for _, answer in answers]).view(3, 8) / 100
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(10):
    loss = nn.functional.cross_entropy(model(x), torch.arange(3))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
