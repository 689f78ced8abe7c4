"""Run the program in a process of its own, with our code before it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Not `-m`: that would find what lies in the current folder before Python's own modules.
_BOOT = (
    "import sys; sys.flags.safe_path or sys.path.pop(0); "
    "{home} in sys.path or sys.path.append({home}); "
    "from ptools.debug.child import main; main()"
).format(home=repr(str(Path(__file__).parents[2])))


def run(words: Sequence[str], variables: Mapping[str, str], log: Path | None = None) -> int:
    """Run `script|module NAME ARGUMENTS...`; the exit code, as a shell gives it.

    Args:
        words: what `child.main` takes.
        variables: are added to the environment.
        log: takes all output; else it goes where ours does.
    """
    command = [sys.executable, "-c", _BOOT, *words]
    environment = {**os.environ, **variables}
    if log is None:
        process = subprocess.Popen(command, env=environment)
    else:
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
    while True:
        with suppress(KeyboardInterrupt):  # the program has it too, and decides what to do
            code = process.wait()
            return code if code >= 0 else 128 - code
