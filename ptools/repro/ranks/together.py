"""How the processes of a launched run end together, though they wait for each other."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

LAUNCHED = "PTOOLS_LAUNCH_FOLDER"
CUT = 3  # the exit code with which a process has its launcher end the others
STAY = 5.0  # seconds
_HURRY = 10.0  # seconds in which a program has to end when it was stopped
_LOOK = 0.02  # seconds


def own_rank() -> int:
    """The rank of this process."""
    return int(os.environ.get("RANK", "0"))


def leave(folder: str) -> None:
    """Let the others know that this process needs no more of them."""
    if LAUNCHED in os.environ:
        _mark(folder, own_rank()).touch()


def meet(folder: str, leader: int) -> bool:
    """Wait until all have come as far, or some seconds if they cannot without this process.

    Args:
        leader: goes no further in any case.

    Returns:
        Whether all are there, and end now.
    """
    if LAUNCHED not in os.environ:
        return True
    leave(folder)
    marks = [_mark(folder, rank) for rank in range(int(os.environ["WORLD_SIZE"]))]
    until = time.monotonic() + STAY
    while not (met := all(mark.exists() for mark in marks)) and time.monotonic() < until:
        time.sleep(_LOOK)
    if met or own_rank() == leader:
        return met
    _mark(folder, own_rank()).unlink()
    if not _mark(folder, leader).exists():  # whoever comes later misses this process
        return False
    leave(folder)
    return True


def hurry() -> None:
    """End this process soon, wherever the program hangs when it was stopped."""
    timer = threading.Timer(_HURRY, os._exit, [CUT])
    timer.daemon = True
    timer.start()


def _mark(folder: str, rank: int) -> Path:
    return Path(folder, f"arrived_{rank}")
