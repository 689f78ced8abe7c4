"""What launching costs: `ptools launch` beside torchrun, accelerate launch and fabric run.

Run `python tests/benchmarks/launch_start.py [ROUNDS]` (7 rounds if not given). Two processes run a
script that prints one line and imports nothing of torch. The ways take turns; each figure is the
median over the rounds. "First line" is from the start of the launcher until the first process is at
the first line of the script, "launcher CPU" is of the launcher with its children less the two
scripts' own, as measured for `python SCRIPT`. A ratio is the median over the rounds of the ratio to
torchrun of the same round.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from harness import show, show_versions

SCRIPT = """
import time
now = time.time()
import os
open(os.path.join(os.environ["STARTS"], str(os.getpid())), "w").write(repr(now))
print("hello")
"""
WAYS = {
    "python SCRIPT": [sys.executable],
    "torchrun": ["torchrun", "--standalone", "--nproc-per-node", "2"],
    "ptools launch": ["ptools", "launch", "--gpus", "cpu", "-n", "2"],
    "accelerate launch": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"],
    "fabric run": ["fabric", "run", "--accelerator", "cpu", "--devices", "2"],
}


class Cost(NamedTuple):
    """Seconds."""

    first_line: float
    cpu: float
    wall: float
    procs: int


def cost(command: list[str], script: str) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        before, began = os.times(), time.time()
        subprocess.run(
            [*command, script],
            env={**os.environ, "STARTS": folder, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended, after = time.time(), os.times()
        starts = [float(file.read_text()) for file in Path(folder).iterdir()]
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    first = min(starts, default=float("nan")) - began
    return Cost(first, spent, ended - began, len(starts))


def main(rounds: int) -> None:
    found: dict[str, list[Cost]] = {}
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join((beside, os.environ["PATH"]))
    ways = {name: command for name, command in WAYS.items() if shutil.which(command[0])}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "hello.py")
        script.write_text(SCRIPT)
        for name, command in list(ways.items()):
            if cost(command, str(script)).procs == 0:  # and from the disk into memory
                print(f"{name} does not get as far as the script here")
                del ways[name]
        for _ in range(rounds):
            for name, command in ways.items():
                found.setdefault(name, []).append(cost(command, str(script)))
    show_versions("accelerate", "lightning_fabric")
    script_cpu = statistics.median(one.cpu for one in found["python SCRIPT"])
    rows = []
    for name, costs in found.items():
        own = 0.0 if name == "python SCRIPT" else 2 * script_cpu
        ratios = [
            (mine.first_line / theirs.first_line, (mine.cpu - own) / (theirs.cpu - 2 * script_cpu))
            for mine, theirs in zip(costs, found["torchrun"], strict=True)
        ]
        rows.append(
            [
                name,
                str(min(one.procs for one in costs)),
                f"{statistics.median(one.first_line for one in costs):.3f}",
                f"{statistics.median(first for first, _ in ratios):.2f}",
                f"{statistics.median(one.cpu for one in costs) - own:.3f}",
                f"{statistics.median(cpu for _, cpu in ratios):.2f}",
                f"{statistics.median(one.wall for one in costs):.3f}",
            ]
        )
    columns = ["", "processes", "first line (s)", "/ torchrun"]
    columns += ["launcher CPU (s)", "/ torchrun", "wall (s)"]
    show("Start of 2 processes that print a line", columns, rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
