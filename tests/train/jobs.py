"""The same training by hand and by ptools.train, forked by one process that has imported torch.

`python jobs.py` prints a line of JSON: for each variant the losses of rank 0, as hexadecimal
numbers, of the loop by hand and of ours.
"""

import json
import os
import socket
import sys
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
import torch._dynamo  # DDP and optimizers do: each process would anew
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ptools import train

SAMPLES, BATCH, EPOCHS, CLIP = 203, 16, 2, 1.0


def data() -> TensorDataset:
    """Vectors of 8 numbers and 3 classes."""
    x = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1).gt(0).long() + x[:, 0].gt(1).long())


def net() -> nn.Module:
    """With BatchNorm, and with dropout, which draws from torch's generator."""
    body = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3)
    return nn.Sequential(*body)


def by_hand(amp: str, accum: int) -> list[str]:
    """Plain torch."""
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if world > 1:
        distributed.init_process_group("gloo")
    torch.manual_seed(0)
    dataset = data()
    sampler = DistributedSampler(dataset, world, rank, shuffle=True, seed=0)
    loader = DataLoader(dataset, BATCH, sampler=sampler)
    model = net()
    if world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for index, (x, y) in enumerate(loader):
            group = min(accum, len(loader) - index // accum * accum)
            boundary = (index + 1) % accum == 0 or index + 1 == len(loader)
            quiet = nullcontext() if boundary or world == 1 else model.no_sync()
            with quiet:
                with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
                    loss = F.cross_entropy(model(x).float(), y)
                (loss / group).backward()
            losses.append(loss.item().hex())
            if boundary:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
    return losses


def by_ptools(amp: str, accum: int) -> list[str]:
    """Ours."""
    losses = []
    with train.session(seed=0, amp=amp) as s:
        loader = s.loader(data(), BATCH, shuffle=True)
        model = s.model(net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = s.stepper(model, optimizer, loader, accum=accum, clip=CLIP)
        for _ in range(EPOCHS):
            for x, y in loader:
                with step:
                    loss = F.cross_entropy(model(x).float(), y)
                step(loss)
                losses.append(loss.item().hex())
    return losses


def forked(job: Any, amp: str, accum: int, world: int) -> list[str]:
    """The losses of rank 0 of a job with so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    told, tell = os.pipe()
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            losses = job(amp, accum)
            if rank == 0:
                os.write(tell, json.dumps(losses).encode())
            os._exit(0)
        pids.append(pid)
    assert not any(os.waitpid(pid, 0)[1] for pid in pids)
    os.close(tell)
    with os.fdopen(told) as text:
        return json.load(text)  # type: ignore[no-any-return]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for amp, accum, world in product(("no", "bf16"), (1, 3), (1, 2)):
        how = f"{amp}, {accum} batches a step, {world} processes"
        found[how] = [forked(job, amp, accum, world) for job in (by_hand, by_ptools)]
    json.dump(found, sys.stdout)
