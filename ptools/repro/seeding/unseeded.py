"""Generators that a program makes without a seed get one that repeats."""

from __future__ import annotations

import functools
import random
import sys
import sysconfig
from types import ModuleType
from typing import Any

from ptools.imports import after_import
from ptools.repro.seeding.streams import Stream

_STDLIB = sysconfig.get_path("stdlib")
_PACKAGES = ("site-packages", "dist-packages")
_streams: list[Stream] = []  # the one of this process, once there is one


def seed_unseeded(root: int) -> bool:
    """From now on, `default_rng()` and `random.Random()` take the next seed of a stream.

    `torch.Generator()` needs none: torch gives each the same seed.

    Returns:
        Whether this process, or the one it was forked from, did so for the first time.
    """
    if _streams:
        _streams[0].begin(root)
        return False
    _streams.append(Stream(root))
    _seed_random(_streams[0])
    after_import("numpy", functools.partial(_seed_numpy, _streams[0]))
    return True


def _seed_random(stream: Stream) -> None:
    plain = random.Random.seed

    @functools.wraps(plain)
    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        # tempfile's must not repeat: two programs would try for the same names.
        if a is None and not _in_stdlib(_caller()):
            a = stream.take()
        plain(self, a, version)

    random.Random.seed = seed  # type: ignore[method-assign]


def _seed_numpy(stream: Stream, numpy: ModuleType) -> None:
    plain = numpy.random.default_rng

    @functools.wraps(plain)
    def default_rng(seed: Any = None) -> Any:
        return plain(stream.take() if seed is None else seed)

    numpy.random.default_rng = default_rng


def _caller() -> str:
    """The file from which a generator was made or seeded."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename == random.__file__:
        frame = frame.f_back
    return frame.f_code.co_filename


@functools.cache
def _in_stdlib(file: str) -> bool:
    return file.startswith(_STDLIB) and not any(name in file for name in _PACKAGES)
