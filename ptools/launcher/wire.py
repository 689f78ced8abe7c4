"""What the launcher and its processes have in common: a few names, and small JSON files.

Each process imports this before the user's program, and with it nothing that can wait.
"""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

TYPE_CHECKING = False  # that of typing would take longer than all of this file
if TYPE_CHECKING:
    from typing import Any

FOLDER = "PTOOLS_LAUNCH_FOLDER"  # names the run's folder to its processes
LAUNCHER = "PTOOLS_LAUNCH_PID"
AMP = "PTOOLS_AMP"
INJECT = "PTOOLS_AMP_INJECT"
# Not SIGUSR1 or 2: SLURM, submitit and NCCL use those.
ASK = getattr(signal, "SIGRTMAX", signal.SIGUSR1) - 3


def write(kind: str, rank: int, values: Mapping[str, object], folder: Path | None = None) -> None:
    """Write `KIND_RANK.json`, whole or not at all."""
    folder = Path(os.environ[FOLDER]) if folder is None else folder
    temporary = folder / f".{kind}_{rank}.{os.getpid()}"
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(folder / f"{kind}_{rank}.json")


def read(kind: str, folder: Path) -> "Iterator[tuple[int, dict[str, Any]]]":
    """All files of a kind that are there, with their ranks."""
    for file in sorted(folder.glob(f"{kind}_*.json")):
        yield int(file.stem.rpartition("_")[2]), json.loads(file.read_text(encoding="utf-8"))
