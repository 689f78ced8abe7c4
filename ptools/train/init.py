"""A training script to begin with, written where there is none."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ptools.errors import UsageError
from ptools.files import atomic_write

_TEMPLATE = Path(__file__).with_name("template.py")
_SCRIPT = re.compile(r"\w[\w-]*\.py")
_NAME = "train.py"  # as the template calls itself
_DATA = "examples/shapes"  # what it trains on


@dataclass(frozen=True)
class NewScript:
    """A script that was written, and what to do with it."""

    file: Path
    data: str

    @property
    def has_data(self) -> bool:
        """Whether what it trains on is there."""
        return Path(self.data).exists()

    @property
    def commands(self) -> tuple[tuple[str, str], ...]:
        """What to type next, each with what it is for."""
        name = shlex.quote(str(self.file))
        return (
            (f"python {name}", "train, on a GPU if there is one"),
            (f"ptools launch {name}", "on all GPUs"),
            (f"python {name} --resume", "go on where it was interrupted"),
            ("tensorboard --logdir runs", "see the curves"),
        )


def write_script(file: str | Path, data: str | None = None, force: bool = False) -> NewScript:
    """Write a script that trains a classifier of images, to be changed by its owner.

    Args:
        data: what it trains on unless told otherwise: a folder of images for each class, or an
            LMDB of such folders; by default the examples of ptools.
        force: replace a file that exists.

    Raises:
        UsageError: the file cannot be a script, exists, or cannot be placed there.
    """
    file = Path(file)
    if not file.is_dir() and not _SCRIPT.fullmatch(file.name):
        raise UsageError(
            f"{file.name} cannot name a script",
            hint="letters, digits, _ and -, and .py at the end, as train.py",
        )
    text = _TEMPLATE.read_text(encoding="utf-8").replace(_NAME, file.name)
    if data is not None:
        text = text.replace(f'DATA = "{_DATA}"', f"DATA = {data!r}")
    with atomic_write(file, force) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return NewScript(file, _DATA if data is None else data)
