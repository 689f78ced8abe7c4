import sys

import torch

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
start = 0
if sys.argv[1:2] == ["--resume"]:
    saved = torch.load(sys.argv[2])
    model.load_state_dict(saved["model"])
    start = saved["step"]
for step in range(start, 16):
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "step": step + 1}, "last.pt")
