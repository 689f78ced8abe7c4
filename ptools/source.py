"""Which line of the user's code is running."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import FrameType

import torch

Line = tuple[str, int]

# With a separator: torchvision's code is the user's, as far as torch is concerned.
_OURS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent}{os.sep}")


@cache
def is_users(file: str) -> bool:
    """Whether a code object's file is neither torch's, nor ours, nor no file at all."""
    return not file.startswith((*_OURS, "<"))


def user_line(frame: FrameType | None) -> Line | None:
    """File and line of the innermost frame that is the user's."""
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None
