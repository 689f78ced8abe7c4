"""Seeding from within a program, and what came of it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ptools import script
from ptools.errors import UsageError
from ptools.repro.seeding.environment import check_seed, rank, split, wanted
from ptools.repro.seeding.flags import Mode, set_flags
from ptools.repro.seeding.settings import Setting, settings

_OF_LATER_PROCESSES = ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC")
_MODES: dict[bool | str, Mode] = {True: "strict", "warn": "warn", False: "off"}


@dataclass(frozen=True)
class SeedReport:
    """What was seeded and set, and what was too late.

    report = ptools.seed_everything(1029)
    print(report)
    """

    seed: int
    rank: int
    mode: Mode
    seeded: tuple[str, ...]  # Python, NumPy, torch, 2 GPUs
    settings: tuple[Setting, ...]

    @property
    def too_late(self) -> tuple[Setting, ...]:
        """What this process had read before it was set."""
        return tuple(one for one in self.settings if one.state == "too late")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"seed {self.seed} for {', '.join(self.seeded)}; deterministic: {self.mode}"]
        for state in ("too late", "missing", "other value"):
            found = [f"{one.name} ({one.what})" for one in self.settings if one.state == state]
            lines += [f"{state}: {'; '.join(found)}"] if found else []
        if len(lines) > 1:
            lines.append("set these before Python starts: ptools seed SCRIPT does")
        return "\n".join(lines)


def seed_everything(seed: int, deterministic: bool | Literal["warn"] = False) -> SeedReport:
    """Seed Python's, NumPy's and torch's generators, on every device.

    All ranks of a distributed training get the same seed, so that what must be equal on them is:
    initial weights, random splits of the data, the order of files. What must not be, the
    augmentation, belongs into DataLoader workers: give `seed_worker` to each DataLoader, which
    seeds them by rank too. What a rank draws in its own process, as dropout, is equal on all.

    Variables that are read as Python starts are set for the processes to come, not replaced, and
    told in the report as too late for this one; `ptools seed SCRIPT` sets them in time.

    Args:
        seed: from 0 to 2**32 - 1.
        deterministic: True has operations without a deterministic version raise, and turns TF32
            off; "warn" has them warn; False leaves torch's flags as they are.

    Returns:
        What was set, and what was too late; `str` of it reads well.

    Raises:
        UsageError: the seed is out of range.

        ptools.seed_everything(1029)
        loader = DataLoader(dataset, num_workers=4, worker_init_fn=ptools.seed_worker)
    """
    check_seed(seed)
    if deterministic not in _MODES:
        raise UsageError(
            f"deterministic={deterministic!r} is not known", hint='give True, "warn" or False'
        )
    mode = _MODES[deterministic]
    variables = [one for one in wanted(seed, mode != "off") if one.name in _OF_LATER_PROCESSES]
    os.environ.update(split(variables, os.environ)[0])
    script.seed(seed)
    if mode != "off":
        import torch

        set_flags(torch, mode)
    return SeedReport(seed, rank(), mode, _seeded(), settings(seed, mode))


def _seeded() -> tuple[str, ...]:
    torch = sys.modules.get("torch")
    count = torch.cuda.device_count() if torch else 0
    return ("Python", "NumPy", "torch", *([f"{count} GPU{'s' * (count > 1)}"] if count else []))
