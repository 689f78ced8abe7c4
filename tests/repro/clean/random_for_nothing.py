"""Unseeded draws of Python and NumPy that no tensor ever sees."""

import os
import random
import secrets

import numpy as np
import torch
from torch import nn

greeting = random.choice(["hello", "good morning", "hi"])
token, port = secrets.token_hex(8), random.randint(20000, 60000)
jitter = np.random.default_rng().random()
torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(10):
    np.random.rand(3)
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(greeting, token, port, jitter, os.urandom(4).hex())
