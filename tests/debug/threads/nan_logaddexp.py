"""The sum of two impossible paths, -inf and -inf, in log space: https://github.com/pytorch/pytorch/issues/49724"""

import torch

torch.manual_seed(0)
scores = torch.randn(2, 2, requires_grad=True)
optimizer = torch.optim.SGD([scores], 0.1)
impossible = torch.tensor(float("-inf"))
for step in range(3):
    moves = scores.log_softmax(1)
    stay, leave = moves[0, 0], moves[1, 1]
    if step == 1:
        stay, leave = stay + impossible, leave + impossible
    path = torch.logaddexp(stay, leave)  # <- made
    loss = -torch.logaddexp(path, moves[0, 1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
