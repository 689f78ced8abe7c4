"""The clock, the pid and new names are read for the log, and decide nothing."""

import logging
import os
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
began, run = time.time(), f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
with tempfile.TemporaryDirectory() as folder:
    log = Path(folder, f"{run}.log")
    for step in range(10):
        tick = time.perf_counter()
        loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate = 6 / (time.perf_counter() - tick)
        logging.info("step %d loss %.4f, %.0f samples/s", step, loss.item(), rate)
        log.write_text(f"{step} {time.time() - began} {rate}")
    torch.save(model.state_dict(), Path(folder, "model.pt"))
    model.load_state_dict(torch.load(Path(folder, "model.pt")))
print(f"pid {os.getpid()}, {run}, {time.time() - began:.2f} s, loss {loss.item()}")
