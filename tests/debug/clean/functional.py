"""torch.func: gradients for each sample, a Jacobian, a model called with other parameters."""

import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
x, y = torch.randn(6, 3), torch.randn(6, 1)


def error(parameters, one, target):
    return (functional_call(model, parameters, one) - target).square().sum()


for _ in range(3):
    parameters = {name: one.detach() for name, one in model.named_parameters()}
    slopes = vmap(grad(error), in_dims=(None, 0, 0))(parameters, x, y)
    jacobian = vmap(jacrev(lambda one: model(one)))(x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter -= 0.1 * slopes[name].mean(0)
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    model.zero_grad()
    print(loss.item().hex(), jacobian.sum().item().hex())
