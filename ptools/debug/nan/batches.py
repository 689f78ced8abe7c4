"""What a DataLoader hands to the training: is it finite, and which sample is not?"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ptools.debug.finite import is_finite
from ptools.debug.nan.origins import Origins
from ptools.debug.nan.stats import stats_of
from ptools.dispatch import Unseen
from ptools.program.batches import batches_told, fields


def batches_checked(origins: Origins) -> AbstractContextManager[None]:
    """Tell `origins` of each batch that is not finite while the block runs."""

    def look(batch: Any, samples: Any) -> None:
        with Unseen():
            for path, tensor in fields(batch):
                if not is_finite(tensor):
                    first = stats_of("", tensor).where
                    origins.brought(tensor, _fact(path, first, samples))

    return batches_told(look)


def _fact(path: str, first: tuple[int, ...] | None, samples: Any) -> str:
    field = f"batch{path}" if path else "the batch"
    if not first:
        return f"{field} came from the DataLoader"
    which = f"sample {first[0]} of {field}"
    if isinstance(samples, list) and first[0] < len(samples):
        return f"{which} is not finite: number {samples[first[0]]} of the data set"
    return f"{which} is not finite"
