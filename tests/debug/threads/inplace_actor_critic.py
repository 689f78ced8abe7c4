"""The critic's step comes before the backward of the actor's loss: https://github.com/mimoralea/gdrl/issues/13"""

import torch
from torch import nn

torch.manual_seed(0)
actor, critic = nn.Linear(3, 2), nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer_a = torch.optim.SGD(actor.parameters(), 1e-3)
optimizer_c = torch.optim.SGD(critic.parameters(), 1e-3)
states, actions, returns = torch.randn(8, 3), torch.randn(8, 2), torch.randn(8, 1)
planned = actor(states).tanh()
loss_a = -critic(torch.cat([states, planned], 1)).mean()  # <- saved
loss_c = (critic(torch.cat([states, actions], 1)) - returns).square().mean()
loss_c.backward()
optimizer_c.step()  # <- changed
loss_a.backward()
optimizer_a.step()
