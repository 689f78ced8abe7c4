"""One element of a sigmoid's result is set: https://github.com/pytorch/pytorch/issues/9391"""

import torch

a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
b = a.sigmoid()  # <- saved
b[1] = 2  # <- changed
b.sum().backward()
