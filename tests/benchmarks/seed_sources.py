"""Which sources of randomness repeat under which way of seeding, and which only seem to.

Run `python tests/benchmarks/seed_sources.py [TOOL ...]`; peers that are not installed are left out.
Each source is planted in a program that is run twice, and once more as rank 1 of a training. The
tool's call stands where its documentation puts it: after the imports, and its worker function in
the DataLoader, as its own trainer does. `ptools seed` runs the program as it stands.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

Tool = tuple[str, Callable[[], Any]]  # the package it needs; its call, which gives a worker's init
SEED = 1029
WORKERS = 2


def lightning() -> Any:
    from lightning_fabric import seed_everything
    from lightning_fabric.utilities.seed import pl_worker_init_function

    seed_everything(SEED, workers=True, verbose=False)
    return pl_worker_init_function


def mmengine() -> Any:
    from mmengine.dataset import worker_init_fn
    from mmengine.runner import set_random_seed

    set_random_seed(SEED, deterministic=True)
    rank = int(os.environ.get("RANK", "0"))
    return functools.partial(worker_init_fn, num_workers=WORKERS, rank=rank, seed=SEED)


def transformers_seed() -> Any:
    from transformers import set_seed
    from transformers.trainer_utils import seed_worker

    set_seed(SEED)
    rank = int(os.environ.get("RANK", "0"))
    return functools.partial(seed_worker, num_workers=WORKERS, rank=rank)


def transformers_full() -> Any:
    from transformers import enable_full_determinism

    worker = transformers_seed()
    enable_full_determinism(SEED, warn_only=True)
    return worker


def composer() -> None:
    from harness import import_torchvision

    import_torchvision()  # it imports torchmetrics, which does
    from composer.utils import reproducibility

    reproducibility.seed_all(SEED)
    reproducibility.configure_deterministic_mode()


def ours() -> Any:
    import ptools

    ptools.seed_everything(SEED, deterministic="warn")
    return ptools.seed_worker


TOOLS: dict[str, Tool] = {
    "nothing": ("torch", lambda: None),
    "Lightning": ("lightning_fabric", lightning),
    "mmengine": ("mmengine", mmengine),
    "set_seed": ("transformers", transformers_seed),
    "full_determinism": ("transformers", transformers_full),
    "composer": ("composer", composer),
    "seed_everything": ("ptools", ours),
    "ptools seed": ("ptools", lambda: None),
}


class Draws(Dataset[Any]):
    """A draw of each kind for each sample."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng()
        self.instance = random.Random()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, float]:
        return {
            "random": random.random(),
            "np.random": float(np.random.rand()),
            "torch": torch.rand(()).item(),
            "Generator of the dataset": float(self.generator.random()),
            "random.Random of the dataset": self.instance.random(),
            "default_rng()": float(np.random.default_rng().random()),
        }


def epochs(init: Any, workers: int, start: str | None = None) -> dict[str, list[float]]:
    """What two epochs draw, by kind."""
    loader = DataLoader(
        Draws(),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=init if workers else None,
        multiprocessing_context=start,
    )
    samples = [sample for _ in range(2) for sample in loader]
    return {kind: [sample[kind] for sample in samples] for kind in samples[0]}


def uninitialised() -> bytes:
    """Bytes of memory that somebody has used before."""
    for _ in range(50):
        torch.frombuffer(bytearray(os.urandom(4096)), dtype=torch.uint8).clone()
    return b"".join(torch.empty(1024).numpy().tobytes() for _ in range(8))


def nondeterministic() -> str:
    """Whether an operation without a deterministic version is told of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch.zeros(4).put_(torch.tensor([1]), torch.tensor([2.0]))
        except RuntimeError:
            return "told"
    return "told" if told else f"not told {os.urandom(4)!r}"


SOURCES: dict[str, Callable[[], Any]] = {
    "Python's random": lambda: random.random(),
    "NumPy, global": lambda: float(np.random.rand()),
    "torch, CPU": lambda: torch.rand(()).item(),
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(64)).tolist(),
    "order of a set of texts": lambda: list({f"class {n}" for n in range(30)}),
    "default_rng() without a seed": lambda: float(np.random.default_rng().random()),
    "random.Random() without a seed": lambda: random.Random().random(),
    "torch.Generator() of a sampler": lambda: list(
        RandomSampler(range(32), generator=torch.Generator())
    ),
    "DataLoader, shuffle": lambda: [
        int(n) for n in DataLoader(range(32), shuffle=True, batch_size=None)
    ],
    "torch.empty()": lambda: uninitialised().hex(),
    "operation without a deterministic version": lambda: nondeterministic(),
}


def draw(tool: str) -> None:
    """Print what each source gives in this process."""
    init = TOOLS[tool][1]()
    found = {name: source() for name, source in SOURCES.items()}
    found["Generator of the dataset, no worker"] = epochs(None, 0)["Generator of the dataset"]
    for start in ("fork", "spawn") if "RANK" not in os.environ else ("fork",):
        for kind, drawn in epochs(init, WORKERS, start).items():
            found[f"{kind}, {start}ed workers"] = drawn
    print(json.dumps(found), flush=True)


def run(tool: str, **variables: str) -> dict[str, Any]:
    """The same in a new process, whose environment sets nothing else."""
    unset = ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    before = ["-m", "ptools", "seed"] if tool == "ptools seed" else []
    done = subprocess.run(
        [sys.executable, *before, __file__, "--draw", tool],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def verdicts(tool: str) -> dict[str, str]:
    """For each source `yes`, or why not."""
    first, again, other = run(tool), run(tool), run(tool, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    found = {}
    for name, drawn in first.items():
        found[name] = "yes" if again[name] == drawn else "differs"
        if found[name] == "yes" and "workers" in name and len({*drawn}) < len(drawn):
            found[name] = "equal draws"
    for name in [name for name in found if name.endswith("forked workers")]:
        by_rank = "equal on ranks" if other[name] == first[name] else "yes"
        found[f"{name}, by rank"] = "differs" if found[name] == "differs" else by_rank
    return found


def main(names: list[str]) -> None:
    from harness import show, show_versions

    columns = {}
    for name in names:
        if importlib.util.find_spec(TOOLS[name][0]) is None:
            print(f"{name} is left out: {TOOLS[name][0]} is not installed", file=sys.stderr)
            continue
        start = time.perf_counter()
        columns[name] = verdicts(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    sources = next(iter(columns.values()))
    rows = [[source, *(told[source] for told in columns.values())] for source in sources]
    totals = [sum(cell == "yes" for cell in told.values()) for told in columns.values()]
    show(
        "Repeats in a second run", ["source", *columns], [*rows, ["yes, of all", *map(str, totals)]]
    )
    show_versions("numpy", "lightning_fabric", "mmengine", "transformers", "mosaicml")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--draw"]:
        draw(sys.argv[2])
    else:
        main(sys.argv[1:] or list(TOOLS))
