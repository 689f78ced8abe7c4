"""Seeds for what runs in a DataLoader's workers."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

from ptools.errors import UsageError
from ptools.repro.seeding.environment import rank
from ptools.repro.seeding.flags import Mode, set_flags
from ptools.repro.seeding.streams import derived
from ptools.repro.seeding.unseeded import seed_unseeded

_LOOKED_AT = 100_000  # objects of a dataset
_OF_EACH = 1_000  # what a container holds more than that is more of the same
_LIBRARIES = {"builtins", "numpy", "random", "torch"}
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, ModuleType)


def seed_worker(worker_id: int) -> None:
    """Seed what torch leaves equal in the workers of a DataLoader: its `worker_init_fn`.

    torch seeds Python, NumPy and itself in each worker anew for each epoch. It does not know of
    NumPy's Generators (nor `random.Random`, `torch.Generator`) that are kept in the dataset or
    beside its class: each worker has an equal copy, in each epoch. Here each is given a stream of
    its own. On ranks other than 0 all is seeded anew, so that no two ranks draw the same.

        DataLoader(dataset, num_workers=4, worker_init_fn=ptools.seed_worker)

    Raises:
        UsageError: it was not called in a worker.
    """
    _seed(worker_id, rank())


def _seed(worker_id: int, number: int) -> int:
    """Seed this worker; the root of its seeds."""
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    if info is None:
        raise UsageError(
            f"seed_worker({worker_id}) was called outside a DataLoader's worker",
            hint="pass it on: DataLoader(..., worker_init_fn=ptools.seed_worker)",
        )
    root = derived(info.seed, number)
    if number:
        _seed_globals(root)
    for index, generator in enumerate(_generators(info.dataset)):
        _seed_one(generator, derived(root, index))
    return root


@dataclass(frozen=True)
class Seeded:
    """The program's own `worker_init_fn`, behind ours."""

    theirs: Callable[[int], object] | None
    mixes_rank: bool  # not where the program has given the DataLoader a generator of its own
    mode: Mode

    def __call__(self, worker_id: int) -> None:
        is_spawned = seed_unseeded(_seed(worker_id, rank() if self.mixes_rank else 0))
        if is_spawned:  # one that was forked has torch's flags of its parent
            set_flags(sys.modules["torch"], self.mode)
        if self.theirs is not None:
            self.theirs(worker_id)


def seed_all_workers(dataloader: ModuleType, mode: Mode) -> None:
    """Have each DataLoader seed its workers; what it shows to the program stays as it is.

    Args:
        dataloader: the module `torch.utils.data.dataloader`.
        mode: for torch's flags in workers that are spawned.
    """
    loader_class = dataloader.DataLoader
    plain = loader_class._get_iterator

    @functools.wraps(plain)
    def _get_iterator(loader: Any) -> Any:
        theirs = loader.worker_init_fn
        if not loader.num_workers or isinstance(theirs, Seeded):
            return plain(loader)
        loader.worker_init_fn = Seeded(theirs, loader.generator is None, mode)
        try:
            return plain(loader)
        finally:
            loader.worker_init_fn = theirs

    loader_class._get_iterator = _get_iterator


def _seed_globals(root: int) -> None:
    import torch

    random.seed(root)
    torch.manual_seed(root)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(root % 2**32)


def _seed_one(generator: Any, seed: int) -> None:
    if hasattr(generator, "bit_generator"):
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state
    elif hasattr(generator, "manual_seed"):
        generator.manual_seed(seed)
    else:  # Python's and NumPy's older one
        generator.seed(seed % 2**32)


def _generators(dataset: object) -> Iterator[Any]:
    """The generators in a dataset, and in the modules of the classes that it is made of."""
    kinds = _kinds()
    waiting, seen = [*_globals("__main__", kinds), dataset], set[int]()
    while waiting and len(seen) < _LOOKED_AT:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _PLAIN):
            continue
        seen.add(id(one))
        if isinstance(one, kinds):
            yield one
        else:
            waiting += _globals(type(one).__module__, kinds)
            with suppress(Exception):  # whatever an object does when it is looked at
                waiting += _inside(one)


def _kinds() -> tuple[type, ...]:
    import torch

    numpy = sys.modules["numpy"].random if "numpy" in sys.modules else None
    of_numpy = (numpy.Generator, numpy.RandomState) if numpy else ()
    return (random.Random, torch.Generator, *of_numpy)


def _globals(module: str, kinds: tuple[type, ...]) -> list[object]:
    """The generators among the names of a module."""
    if module.partition(".")[0] in _LIBRARIES or module not in sys.modules:
        return []
    return [value for value in vars(sys.modules[module]).values() if isinstance(value, kinds)]


def _inside(one: Any) -> list[object]:
    """What an object holds."""
    if isinstance(one, dict):
        return list(islice(one.values(), _OF_EACH))
    if isinstance(one, list | tuple | set | frozenset):
        return list(islice(one, _OF_EACH))
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, MethodType):
        return [one.__self__, one.__func__]
    if isinstance(one, FunctionType):
        return _closure(one)
    slots = [name for kind in type(one).__mro__ for name in _slots(kind)]
    held = [getattr(one, name) for name in slots if hasattr(one, name)]
    return [*held, *getattr(one, "__dict__", {}).values()]


def _slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _closure(function: FunctionType) -> list[object]:
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not bound yet
            found.append(cell.cell_contents)
    return found
