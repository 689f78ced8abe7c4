"""Which sample made a loader raise."""

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ptools.errors import SHOW_TRACEBACK, PtoolsError
from ptools.loader_profile.isolate import RunError, isolated
from ptools.loader_profile.rebuild import rebuilt, settings_of
from ptools.usercode import describe

_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception|Exit|Warning)\b.*)$", re.MULTILINE)
_UNPICKLABLE = re.compile(r"can't pickle|cannot pickle|PicklingError", re.IGNORECASE)
_SECONDS = 20


def explained(error: RunError, loader: DataLoader[Any]) -> PtoolsError:
    """The error with the sample's index, found by a run without workers in the same order."""
    if _UNPICKLABLE.search(error.text):
        return PtoolsError(
            f"the workers cannot be started: {error.message}",
            hint="with spawn and forkserver the dataset is pickled: no lambdas, open files or "
            "classes defined in functions",
        )
    raised = _RAISED.findall(error.text)
    message = raised[-1] if raised else error.message
    try:
        isolated(partial(_look_for, loader), _SECONDS)
    except RunError:
        pass
    except PtoolsError as found:
        if message.partition(":")[0] in found.message:  # it may fail otherwise without workers
            return found
    return PtoolsError(f"the loader raised {message}", hint=SHOW_TRACEBACK)


def _look_for(loader: DataLoader[Any]) -> None:
    settings = settings_of(loader).with_workers(0)
    named = None if isinstance(loader.dataset, IterableDataset) else _Named(loader.dataset)
    collate = _Collate(loader.collate_fn)
    again: Iterable[Any] = rebuilt(loader, settings, dataset=named, collate_fn=collate)
    with suppress(TypeError):  # a stream has no length
        again = islice(again, len(loader))
    for _ in again:
        pass


class _Named:
    """A dataset that names the sample that it fails at."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            raise PtoolsError(
                f"sample {index} of the dataset raised {describe(error)}",
                hint=f"try dataset[{index}] in Python",
            ) from error


class _Collate:
    def __init__(self, collate_fn: Any) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: Any) -> Any:
        try:
            return self.collate_fn(samples)
        except Exception as error:
            memory = "a smaller batch_size needs less"
            shapes = "do all samples have one shape? collate_fn decides what becomes of them"
            raise PtoolsError(
                f"collating samples raised {describe(error)}",
                hint=memory if "memory" in str(error) else shapes,
            ) from error
