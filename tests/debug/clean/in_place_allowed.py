"""In-place operations where nothing needs what they overwrite."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 3, 3),
    nn.ReLU6(inplace=True),
    Block(),
    Block(),
    nn.Flatten(),
    nn.Linear(48, 8),
    nn.Dropout(0.5, inplace=True),
    nn.Linear(8, 2),
)
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True)
for _ in range(4):
    x = torch.rand(4, 1, 6, 6)
    x.sub_(x.mean()).div_(x.std())
    x[:, :, 0] = 0
    scratch = torch.zeros(4, 2)
    scratch[:, 0] += 1
    logits = model(x)
    logits *= 2
    loss = (logits.log_softmax(1) * scratch).sum().neg_()
    scratch = torch.empty(4, 2).fill_(1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
