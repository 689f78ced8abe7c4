"""acos has an infinite slope at 1, and the cosine before it a slope of 0: https://github.com/pytorch/pytorch/issues/4605"""

import torch

angles = torch.tensor([0.3, 0.1, -0.2], requires_grad=True)
optimizer = torch.optim.SGD([angles], 0.1)
for step in range(4):
    cosines = torch.cos(angles)  # <- made
    loss = torch.acos(cosines).sum()  # <- born
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        angles[1] = angles[1].clamp(min=0)
    print(step, loss.item())
