"""Become the program: a new Python in this process, with our code before the program's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ptools import script
from ptools.program.process import boot
from ptools.repro.seeding.environment import check_seed, rank, split, wanted

if TYPE_CHECKING:
    from ptools.repro.seeding.flags import Mode

_CHILD = "ptools.repro.seeding.child"
_MODES = {
    "strict": "what has no deterministic version is an error",
    "warn": "deterministic where torch can be",
    "off": "torch's algorithms as they are",
}


def start(
    name: str,
    arguments: Sequence[str],
    *,
    seed: int,
    mode: Mode,
    module: bool,
    say: Callable[[str], None],
) -> None:
    """Replace this process by the program: its pid, signals, input and exit code are its own.

    Raises:
        UsageError: the seed is out of range, or there is no such program.
    """
    check_seed(seed)
    if module:
        script.check_module(name)
    else:
        script.check_script(name)
    added, kept = split(wanted(seed, mode != "off"), os.environ)
    environment = {**os.environ, **added}
    if rank() == 0:
        threads = environment["OMP_NUM_THREADS"]
        say(f"seed {seed}; {threads} thread{'s' * (threads != '1')}; {mode}: {_MODES[mode]}")
        if kept:
            say(f"kept as it was set: {', '.join(kept)}")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    words = [str(seed), mode, "module" if module else "script", name, *arguments]
    os.execve(sys.executable, [sys.executable, "-c", boot(_CHILD), *words], environment)
