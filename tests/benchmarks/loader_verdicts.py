"""How often the profile of a loader names what was planted in it, and how exact its times are.

Run `python tests/benchmarks/loader_verdicts.py [SEEDS [BUDGET [CLASS ...]]]` (10 seeds and 60
seconds if not given) on a machine with two free cores, in a folder on the disk to read from.

The loaders are those of tests/loader_profile/plants.py. For the second table a transform that keeps
a core busy and one that sleeps are planted, for 1 to 20 ms, and the stages are measured in a
worker, on the machine as it is and with two processes beside it that never rest.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

from harness import show, show_versions

sys.path.insert(0, str(Path(__file__).parents[1] / "loader_profile"))
from costs import Crop, Doze, Samples, busy
from plants import PLANTS, loads, planted

from ptools.errors import PtoolsError
from ptools.loader_profile.engine import profile_loader
from ptools.loader_profile.isolate import isolated
from ptools.loader_profile.observe import How, observe
from ptools.loader_profile.rebuild import settings_of

SECONDS = 0.5  # of a run
PATIENCE = 300


def verdict(name: str, seed: int, budget: float) -> tuple[bool, str]:
    """Whether what was planted is named, and what was."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        plant = planted(name, seed, Path(folder))
        try:
            profile = profile_loader(
                plant.loader, step_ms=plant.step_ms, budget=budget, cold=plant.cold
            )
        except PtoolsError as error:
            return False, f"error: {error}"
    found = profile.verdict
    assert found is not None
    right = (found.kind, found.part) == (plant.kind, plant.part)
    return right, f"{found.kind} {found.part or ''}".strip()


def show_verdicts(names: list[str], seeds: int, budget: float) -> None:
    rows = []
    for name in names:
        start = time.perf_counter()
        told = [verdict(name, seed, budget) for seed in range(seeds)]
        wrong = Counter(text for right, text in told if not right)
        words = ", ".join(f"{count} x {text}" for text, count in wrong.most_common())
        taken = (time.perf_counter() - start) / seeds
        rows.append([name, f"{seeds - wrong.total()} of {seeds}", words, f"{taken:.0f}"])
        print(*rows[-1], sep=" | ", file=sys.stderr)
    show(
        f"What was planted, and what was named; budget {budget:g} s",
        ["planted", "right", "wrong", "seconds each"],
        rows,
    )


def errors(run: float, waiting: float) -> tuple[float, float]:
    """Of planted seconds on a core and of waiting: what is measured in relation to them, less 1."""
    chain = [Crop(run), Doze(waiting)]
    loader = loads(Samples(transforms=chain), random.Random(0), workers=1)
    settings = settings_of(loader)
    assert settings.batch_size is not None
    look = partial(observe, loader, settings, SECONDS, settings.batch_size, How())
    observed = isolated(look, seconds=PATIENCE)
    samples = len(observed.records) * observed.batch_samples
    ran = sum(one.stages["Crop", "transform"][1] for one in observed.records) / samples
    waited = sum(one.stages["Doze", "transform"][3] for one in observed.records) / samples
    return ran / run - 1, waited / waiting - 1


def show_times(seeds: int) -> None:
    rows = []
    for milliseconds in (1, 2, 5, 10, 20):
        row = [f"{milliseconds} to {2 * milliseconds}"]
        for processes in (0, 2):
            with busy(processes):
                draw = random.Random(milliseconds)
                told = [
                    errors(*(draw.uniform(1, 2) * milliseconds / 1e3 for _ in range(2)))
                    for _ in range(seeds)
                ]
            row += [f"{max(column, key=abs):+.1%}" for column in zip(*told, strict=True)]
        rows.append(row)
    columns = ["ms planted", "run", "waiting", "run, busy", "waiting, busy"]
    show(f"Worst error of the time of a stage, of {seeds} drawn", columns, rows)


def main(seeds: str = "10", budget: str = "60", *names: str) -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    show_versions("ptools")
    show_times(int(seeds))
    show_verdicts(list(names or PLANTS), int(seeds), float(budget))


if __name__ == "__main__":
    main(*sys.argv[1:])
