"""Moving averages of weights and of a teacher, written in place between the steps."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(0)
student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
teacher = copy.deepcopy(student).requires_grad_(False)
average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
for _ in range(5):
    x = torch.randn(8, 4)
    loss = (student(x) - teacher(x + 0.1)).square().mean() + student(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average.update_parameters(student)
    with torch.no_grad():
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.lerp_(new, 0.1)
        for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
            old.copy_(new)
    for parameter in teacher.parameters():
        parameter.data.mul_(0.999)
    print(loss.item().hex(), average(x).sum().item().hex())
