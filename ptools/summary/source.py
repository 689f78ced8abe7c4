"""Which line of the user's code is running."""

from __future__ import annotations

from pathlib import Path
from types import FrameType

import torch

Line = tuple[str, int]

_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_is_internal: dict[str, bool] = {}


def user_line(frame: FrameType | None) -> Line | None:
    """File and line of the innermost frame that is neither torch's nor ours."""
    while frame is not None:
        file = frame.f_code.co_filename
        internal = _is_internal.get(file)
        if internal is None:
            internal = _is_internal[file] = file.startswith(_OURS) or file.startswith("<")
        if not internal:
            return file, frame.f_lineno
        frame = frame.f_back
    return None
