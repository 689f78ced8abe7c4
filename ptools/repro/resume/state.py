"""What a point of a training is made of: names that the program's process and ours share."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from ptools.repro.events import Value

POINT = "point"  # the kind of event: all that a training goes on from, before a forward
FORWARD, END = "the forward", "the end"  # names of such events

# Each value's name is `CATEGORY: NAME`. These make the future.
PARAMETER = "parameter"
OPTIMIZER = "optimizer"
GROUP = "group"
SCHEDULER = "scheduler"
SCALER = "scaler"
BUFFER = "buffer"
GRADIENT = "gradient"
MODEL = "model"  # tensors of a module that no optimizer holds: an average, a teacher
COPY = "copy"  # a dictionary of the program's with tensors by the names of a model's
INPUT = "input"
# These only may.
GENERATOR = "generator"
DRAWN = "drawn"  # the generators after the forward
COUNTER = "counter"  # integers that the program keeps

KEPT = (PARAMETER, OPTIMIZER, GROUP, SCHEDULER, SCALER, BUFFER, GRADIENT, MODEL, COPY)


def named(category: str, value: Value) -> Value:
    """A value of a category."""
    return value._replace(name=f"{category}: {value.name}")


def category_of(value: Value) -> str:
    """The category of a value of a point."""
    return value.name.partition(": ")[0]


def parameters_key(values: Iterable[Value]) -> str:
    """One digest of all parameters of a point."""
    held = [(one.name, one.digest) for one in values if category_of(one) == PARAMETER]
    return str(zlib.crc32(repr(held).encode()))
