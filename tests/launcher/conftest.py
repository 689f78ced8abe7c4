"""Processes that print, run by the part of the launcher that passes their output on."""

import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCH = """
import os, subprocess, sys, time
from pathlib import Path
from ptools.launcher.output import Output
folder, procs, show, script = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
output = Output(folder, procs, show)
ranks = []
for rank in range(procs):
    out, err = output.ends(rank)
    environment = {**os.environ, "RANK": str(rank), "FOLDER": str(folder)}
    command = [sys.executable, "-c", script]
    ranks.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
    output.started(rank)
failed = set()
while any(rank.poll() is None for rank in ranks):
    output.pump(0.02)
    for number, rank in enumerate(ranks):
        if rank.poll() or (folder / f"failure_{number}.json").exists():
            output.pump(0.02)
            output.show_from_failure(number)
output.drain()
"""
SAY = """
import os, pathlib, sys, time
rank, folder = int(os.environ["RANK"]), pathlib.Path(os.environ["FOLDER"])
def say(text, stream=1):
    data = text if isinstance(text, bytes) else text.encode()
    while data:
        data = data[os.write(stream, data):]
def turn(name):
    (folder / name).touch()
def wait(name):
    while not (folder / name).exists():
        time.sleep(0.005)
"""


@pytest.fixture
def command(folder: Path) -> Callable[[str, int, str], list[str]]:
    """The command that runs a script in processes, their logs in the current folder."""

    def build(script: str, procs: int, show: str) -> list[str]:
        return [sys.executable, "-c", LAUNCH, str(folder), str(procs), show, SAY + script]

    return build


@pytest.fixture
def launch(
    command: Callable[..., list[str]],
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run a script in processes whose output goes through pipes."""

    def run(script: str, procs: int = 2, show: str = "first") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command(script, procs, show), capture_output=True, timeout=60, check=True
        )

    return run


@pytest.fixture
def on_terminal(command: Callable[..., list[str]]) -> Callable[..., bytes]:
    """What a terminal of 50 columns is sent when a script is run in processes."""

    def run(script: str, procs: int = 1, show: str = "first") -> bytes:
        end, given = os.openpty()
        fcntl.ioctl(given, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
        launcher = subprocess.Popen(
            command(script, procs, show), stdin=given, stdout=given, stderr=given
        )
        os.close(given)
        seen = b""
        while piece := read(end):
            seen += piece
            if b"resize" in piece:
                fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 77, 0, 0))
        assert launcher.wait(timeout=60) == 0
        os.close(end)
        return seen

    return run


def read(end: int) -> bytes:
    try:
        return os.read(end, 1 << 16)
    except OSError:
        return b""
