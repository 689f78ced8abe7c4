"""One of several in-place operations in a row is too many: https://github.com/pytorch/pytorch/issues/15803"""

import torch

torch.manual_seed(0)
a = torch.rand(1, requires_grad=True)
c = torch.rand(1, requires_grad=True)
b = a**2 * c**2
b += 1
b = b * (c + a)
d = b.exp_()  # <- saved
d *= 5  # <- changed
d.backward()
