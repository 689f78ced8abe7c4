"""All that a training needs to go on bit for bit, in one file that loads without pickle's code."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ptools.errors import PtoolsError, UsageError
from ptools.files import atomic_write
from ptools.generators import rng_state, set_rng_state
from ptools.train.stepper import Stepper
from ptools.train.world import World


def save(
    file: Path,
    parts: dict[str, Any],
    own: dict[str, Any],
    world: World,
    steppers: Sequence[Stepper] = (),
) -> None:
    """See `Session.save`."""
    for name, part in parts.items():
        _check_plain(name, part)
    mine = rng_state(), [one.waiting() for one in steppers]
    ranks: list[Any] = [mine]
    if world.size > 1:
        ranks = [None] * world.size
        distributed.all_gather_object(ranks, mine)
    if world.is_main:
        saved = {
            "parts": {name: _state(part) for name, part in parts.items()},
            "own": {name: _state(part) for name, part in own.items()},
            "generators": [generators for generators, _ in ranks],
            "waiting": [waiting for _, waiting in ranks],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, force=True) as temporary:
            torch.save(saved, temporary)
    if world.size > 1:
        distributed.barrier()  # nobody is ahead of a file that is not there yet


def load(
    file: Path,
    parts: dict[str, Any],
    own: dict[str, Any],
    world: World,
    steppers: Sequence[Stepper] = (),
) -> dict[str, Any]:
    """See `Session.load`."""
    saved = _read(file)
    if missing := parts.keys() - saved["parts"].keys():
        raise UsageError(
            f"{file} holds no {', '.join(sorted(missing))}",
            hint=f"it holds {', '.join(sorted(saved['parts']))}",
        )
    for name, part in parts.items():
        _bare(part).load_state_dict(saved["parts"][name])
    same_world = len(saved["generators"]) == world.size
    for name, part in own.items():
        if name in saved["own"] and (same_world or not name.startswith("loader")):
            part.load_state_dict(saved["own"][name])
        elif name in saved["own"]:  # the batches that were handed out are others now
            part.load_state_dict({**saved["own"][name], "batch": 0})
    if same_world:
        for stepper, state in zip(steppers, saved["waiting"][world.rank], strict=False):
            stepper.wait_again(state)
        set_rng_state(saved["generators"][world.rank])
    return {name: part for name, part in saved["parts"].items() if name not in parts}


def _read(file: Path) -> dict[str, Any]:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint {file}", hint="session.save writes it") from None
    except Exception as error:
        raise PtoolsError(
            f"{file} is no whole checkpoint: {error}", hint=f"ptools fix-ckpt info {file}"
        ) from error
    if not isinstance(saved, dict) or not saved.keys() >= {"parts", "own", "generators", "waiting"}:
        raise PtoolsError(
            f"{file} was not written by session.save", hint=f"ptools fix-ckpt info {file}"
        )
    return saved


def _check_plain(name: str, part: Any) -> None:
    """What cannot be read again is better known before than after the training."""
    if hasattr(_bare(part), "state_dict"):
        return
    written = BytesIO()
    try:
        torch.save(part, written)
        written.seek(0)
        torch.load(written, map_location="cpu", weights_only=True)
    except (PickleError, AttributeError, TypeError):  # by pickle, each for what it cannot write
        raise UsageError(
            f"{name} is of {type(part).__name__}, or holds what is no plain value: load would have "
            "to run code from the file",
            hint="save numbers, text, tensors, lists, dicts of them: vars(args), str(path)",
        ) from None


def _state(part: Any) -> Any:
    part = _bare(part)
    return part.state_dict() if hasattr(part, "state_dict") else part


def _bare(part: Any) -> Any:
    return part.module if isinstance(part, DistributedDataParallel) else part
