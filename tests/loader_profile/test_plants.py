import functools
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest
from torch.utils.data import DataLoader

from ptools.loader_profile import stages
from ptools.loader_profile.engine import profile_loader
from ptools.loader_profile.isolate import isolated
from ptools.loader_profile.observe import How, Observation, observe
from ptools.loader_profile.rebuild import settings_of
from ptools.loader_profile.report import Demand

sys.path.insert(0, str(Path(__file__).parent))
from costs import FORK, Crop, Doze, Samples, busy, collated, spin
from plants import Plant, planted, some


def check(plant: Plant, *budgets: float) -> None:
    """The verdict is right; a machine that is disturbed may hide it once, not in a longer run."""
    for budget in budgets:
        profile = profile_loader(
            plant.loader, step_ms=plant.step_ms, cold=plant.cold, budget=budget
        )
        found = profile.verdict
        assert found is not None
        if (found.kind, found.part) == (plant.kind, plant.part):
            return
    pytest.fail(f"{plant.kind} {plant.part} was planted, and named was {found}")


# All are in tests/benchmarks/loader_verdicts.py, which takes its time.
QUICK = ("storage", "collate", "transfer", "too few workers", "head-of-line")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_what_was_planted_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep large files
        check(planted(name, 0, Path(folder)), 3, 24)


@pytest.mark.parametrize("name", ["consumer", "transform"])
def test_a_second_suffices_for_what_stands_out(name: str, tmp_path: Path) -> None:
    check(planted(name, 1, tmp_path), 1, 4)


@pytest.mark.parametrize("processes", [0, 2])
def test_stages_take_what_was_planted_however_busy_the_machine(processes: int) -> None:
    # Calls that sleep take a core, too, for a tenth of a millisecond.
    work = some(spin, 4.0), some(time.sleep, 5.0)
    dataset = Samples(*work, transforms=[Crop(1.2e-3), Doze(1.5e-3)])
    batch = 4
    slowly = functools.partial(collated, batch * 1.4e-3)
    unused = Demand(run=0.0, waiting=0.0, helpers=0.0, main=0.0, alone=0.0)
    run, waiting = defaultdict(list), defaultdict(list)
    with busy(processes):
        for _ in range(3):  # a virtual machine may lose its cores for many milliseconds
            alone, worker = (observed(dataset, batch, slowly, workers) for workers in (0, 1))
            for part in stages.stages(worker, alone, unused, with_workers=True):
                run[part.name].append(part.run * 1e3)
                waiting[part.name].append(part.waiting * 1e3)
    assert median(run["dataset code"]) == pytest.approx(4.0, rel=0.1)
    assert median(run["Crop"]) == pytest.approx(1.2, rel=0.1)
    assert median(run["collate"]) == pytest.approx(1.4, rel=0.1)
    assert median(waiting["storage"]) == pytest.approx(5.0, rel=0.1)
    assert median(waiting["Doze"]) == pytest.approx(1.5, rel=0.1)


def observed(dataset: Samples, batch: int, collate: object, workers: int) -> Observation:
    context = FORK if workers else None
    loader = DataLoader(
        dataset, batch, num_workers=workers, collate_fn=collate, multiprocessing_context=context
    )
    look = functools.partial(observe, loader, settings_of(loader), 0.3, batch, How())
    return isolated(look, seconds=60)
