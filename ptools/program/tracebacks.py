"""Tracebacks of the user's program as plain Python would show them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from ptools import script

_FLOOR = f"{Path(__file__).parent}{os.sep}", str(Path(__file__).parents[1] / "dispatch.py")


def clear(error: BaseException, room: str) -> None:
    """Take our frames out of an error's traceback, and of those behind it.

    Args:
        room: the folder whose code runs the program; what the program itself calls of ours stays.
    """
    error.__traceback__ = script.below(error)
    for one in chain(error):
        one.__traceback__ = _without(one.__traceback__, (*_FLOOR, room))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came of, each once."""
    waiting: list[BaseException | None] = [error]
    known: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in known:
            continue
        known.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else []


def _without(traceback: TracebackType | None, ours: tuple[str, ...]) -> TracebackType | None:
    frames: list[TracebackType] = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    if not frames or _is_in(ours, frames[-1]):  # a bug of ours is shown with all its lines
        return frames[0] if frames else None
    kept: list[TracebackType | None] = [
        frame
        for before, frame in pairwise([None, *frames])
        if frame and not _is_in(ours, frame) and not (before and _is_called(ours, before, frame))
    ]
    for frame, following in pairwise([*kept, None]):
        if frame is not None:
            frame.tb_next = following
    return kept[0] if kept else None


def _is_in(folders: tuple[str, ...], frame: TracebackType) -> bool:
    return _file(frame).startswith(folders)


def _is_called(ours: tuple[str, ...], before: TracebackType, frame: TracebackType) -> bool:
    """Whether it is torch's frame for an operation that we called in the program's place."""
    return _is_in(ours, before) and _file(frame).endswith("torch/_ops.py")


def _file(frame: TracebackType) -> str:
    return frame.tb_frame.f_code.co_filename
