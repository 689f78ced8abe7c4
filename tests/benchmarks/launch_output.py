"""What it costs to print 200,000 lines from 2 processes, beside processes that share our stdout.

Run `python tests/benchmarks/launch_output.py [ROUNDS]` (5 rounds if not given). Each process prints
100,000 lines of about 60 bytes with `print`. The ways take turns; a ratio is the median over the
rounds of the ratio to "inherited" of the same round. Seconds are from the start of the first
process's program until all is read and the launcher has ended (torchrun: until the last byte, so
that neither its import of torch nor its end is counted). A terminal is a pseudo-terminal that is
read as fast as it goes. Every process has its own session, as torchrun gives it one: the kernel
shares the processors between sessions.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from harness import show, show_versions

LINES = 100_000
SCRIPT = f"""
import os, pathlib, time
pathlib.Path(os.environ["STARTS"], os.environ["RANK"]).write_text(repr(time.time()))
for step in range({LINES}):
    print(f"step {{step:06d}} loss 0.123456 lr 1.0e-03 time 0.0123 s")
"""
INHERITED = """
import os, subprocess, sys
ranks = [
    subprocess.Popen(
        [sys.executable, sys.argv[1]],
        env={**os.environ, "RANK": str(rank)},
        start_new_session=True,
    )
    for rank in range(2)
]
for rank in ranks:
    rank.wait()
"""
PTOOLS = """
import os, subprocess, sys
from pathlib import Path
from ptools.launcher.output import Output
output = Output(Path(sys.argv[2]), 2, sys.argv[3])
ranks = []
for rank in range(2):
    out, err = output.ends(rank)
    ranks.append(
        subprocess.Popen(
            [sys.executable, sys.argv[1]],
            env={**os.environ, "RANK": str(rank)},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    )
    output.started(rank)
while any(rank.poll() is None for rank in ranks):
    output.pump(0.02)
output.drain()
"""


def ways(folder: Path) -> dict[str, list[str]]:
    """The commands to compare."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return {
        "inherited": [sys.executable, "-c", INHERITED, str(script)],
        "ptools": [sys.executable, "-c", PTOOLS, str(script), str(folder), "first"],
        "ptools --show all": [sys.executable, "-c", PTOOLS, str(script), str(folder), "all"],
        "torchrun": [*torchrun, str(script)],
        "torchrun --tee 3": [*torchrun, "--tee", "3", "--log-dir", str(folder), str(script)],
    }


def seconds(command: list[str], starts: Path, on_terminal: bool) -> tuple[float, int]:
    """How long it took, and how many bytes came."""
    for file in starts.iterdir():
        file.unlink()
    end, given = os.openpty() if on_terminal else os.pipe()
    if on_terminal:
        attributes = termios.tcgetattr(given)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(given, termios.TCSANOW, attributes)
    environment = {**os.environ, "STARTS": str(starts), "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=given, stderr=given, env=environment
    )
    os.close(given)
    last, size = 0.0, 0
    while data := _read(end):
        last, size = time.time(), size + len(data)
    os.close(end)
    if launcher.wait():
        raise SystemExit(f"error: {' '.join(command)} failed")
    stop = last if "torch.distributed.run" in command else time.time()
    return stop - min(float(file.read_text()) for file in starts.iterdir()), size


def _read(end: int) -> bytes:
    try:
        return os.read(end, 1 << 20)
    except OSError:  # EIO: the end of a terminal
        return b""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    show_versions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = folder / "starts"
        starts.mkdir()
        for place in ("pipe", "terminal"):
            taken: dict[str, list[float]] = {}
            sizes: dict[str, int] = {}
            for _ in range(rounds):
                for way, command in ways(folder).items():
                    time_taken, sizes[way] = seconds(command, starts, place == "terminal")
                    taken.setdefault(way, []).append(time_taken)
            rows = []
            for way, times in taken.items():
                pairs = zip(times, taken["inherited"], strict=True)
                ratio = statistics.median(one / base for one, base in pairs)
                size = f"{sizes[way] / 1e6:.1f}"
                rows.append([way, f"{statistics.median(times):.2f}", f"{ratio:.2f}", size])
            title = f"{2 * LINES:,} lines from 2 processes, to a {place}"
            show(title, ["", "seconds", "ratio", "MB shown"], rows)


if __name__ == "__main__":
    main()
