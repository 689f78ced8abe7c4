"""Signals to a running launcher: all its processes end, in order, in time, and none stays."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if not Path("/proc/self/cmdline").exists():
    pytest.skip("looks at /proc", allow_module_level=True)

# Each process makes a file when it is at work, and another when it ends in order.
WORKS = """
import os, signal, sys, time
from pathlib import Path
{}
Path(f"at_work_{{os.environ['RANK']}}").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    Path(f"in_order_{{os.environ['RANK']}}").touch()
    raise
"""
DEAF = "for number in (2, 15):\n    signal.signal(number, signal.SIG_IGN)"
LOADERS = """
import os, sys, time
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
class Slow(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        time.sleep(0.1)
        return index
if __name__ == "__main__":
    for batch in DataLoader(Slow(), num_workers=2, multiprocessing_context=sys.argv[1]):
        Path(f"at_work_{os.environ['RANK']}").touch()
"""

Start = Callable[..., subprocess.Popen[bytes]]
MARK = "a-run-to-find-again"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Launch a script in two processes; nothing of it outlives the test."""
    marked = {MARK: uuid.uuid4().hex}
    launchers = []

    def begin(script: str, *arguments: str, grace: str = "5") -> subprocess.Popen[bytes]:
        (folder / "train.py").write_text(script)
        command = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2"]
        command += ["--grace", grace, "train.py", *arguments]
        launchers.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **marked})
        )
        return launchers[-1]

    yield begin
    for launcher in launchers:
        launcher.kill()
        launcher.communicate()
    left = processes(marked[MARK])
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes outlive the launcher"


def processes(mark: str) -> list[int]:
    """All that have the mark in their environment, which every child inherits."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = re.search(r"^State:\s+(\w)", (entry / "status").read_text(), re.MULTILINE)
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found += [int(entry.name)] if state and state[1] != "Z" else []
        except OSError:
            continue  # it has ended
    return found


def mark_of(launcher: subprocess.Popen[bytes]) -> str:
    environ = Path(f"/proc/{launcher.pid}/environ").read_bytes()
    return environ.partition(f"{MARK}=".encode())[2].partition(b"\0")[0].decode()


def wait_for(*names: str, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not all(Path(name).exists() for name in names):
        assert time.monotonic() < until, f"not there: {names}"
        time.sleep(0.01)


def at_work() -> None:
    wait_for("at_work_0", "at_work_1")


def end(launcher: subprocess.Popen[bytes], seconds: float = 20) -> tuple[int, str, float]:
    """Exit code, what was said, and how long it took."""
    began = time.monotonic()
    _, said = launcher.communicate(timeout=seconds)
    return launcher.returncode, said.decode(), time.monotonic() - began


def test_one_interrupt_ends_all_in_order(start: Start) -> None:
    launcher = start(WORKS.format(""))
    at_work()
    launcher.send_signal(signal.SIGINT)
    code, said, seconds = end(launcher)
    assert code == 130
    assert seconds < 2
    assert Path("in_order_0").exists() and Path("in_order_1").exists()
    assert "stopped by Ctrl-C" in said
    assert "first failure" not in said


def test_a_second_interrupt_ends_at_once_who_ignores_the_first(start: Start) -> None:
    launcher = start(WORKS.format(DEAF), grace="30")
    at_work()
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    code, _, seconds = end(launcher)
    assert code == 130
    assert seconds < 1


@pytest.mark.parametrize(("ours", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_to_end_is_passed_on(start: Start, ours: signal.Signals, code: int) -> None:
    launcher = start(WORKS.format(""))
    at_work()
    launcher.send_signal(ours)
    ended, said, seconds = end(launcher)
    assert ended == code
    assert seconds < 2
    assert "first failure" not in said


def test_who_ignores_a_request_to_end_is_killed_after_the_grace(start: Start) -> None:
    launcher = start(WORKS.format(DEAF), grace="0.5")
    at_work()
    launcher.send_signal(signal.SIGTERM)
    code, _, seconds = end(launcher)
    assert code == 143
    assert 0.4 < seconds < 1.5


@pytest.mark.parametrize("delay", [0.02, 0.15, 0.22, 0.3])
def test_a_request_to_end_while_it_starts(start: Start, delay: float) -> None:
    launcher = start(WORKS.format(""))
    time.sleep(delay)
    launcher.send_signal(signal.SIGTERM)
    code, said, _ = end(launcher)
    assert code in (143, -signal.SIGTERM)
    assert "Traceback" not in said


def test_a_signal_after_a_failure_does_not_hide_it(start: Start) -> None:
    fails = "if os.environ['RANK'] == '1':\n    raise ValueError('bad')"
    launcher = start(WORKS.format(f"{DEAF}\n{fails}"), grace="30")
    wait_for("at_work_0")
    time.sleep(1)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.2)
    launcher.send_signal(signal.SIGINT)
    _, said, seconds = end(launcher)
    assert "first failure: rank 1: ValueError: bad" in said
    assert seconds < 1


def test_no_process_outlives_a_killed_launcher(start: Start) -> None:
    launcher = start(WORKS.format(DEAF))
    at_work()
    mark = mark_of(launcher)
    assert len(processes(mark)) >= 3
    launcher.kill()
    launcher.wait()
    time.sleep(1)
    assert processes(mark) == []


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_no_loader_outlives_a_killed_launcher(start: Start, context: str) -> None:
    pytest.importorskip("torch")
    launcher = start(LOADERS, context)
    at_work()
    mark = mark_of(launcher)
    assert len(processes(mark)) >= 7  # the launcher, two ranks, two loaders of each
    launcher.kill()
    launcher.wait()
    time.sleep(2)
    assert processes(mark) == []


def test_no_loader_outlives_a_run(start: Start) -> None:
    launcher = start(
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time\\n"
        "time.sleep(60)'], stdout=-3, stderr=-3)\n"
    )
    mark = mark_of(launcher)
    assert end(launcher)[0] == 0
    time.sleep(1)  # a killed process is there until it has been waited for
    assert processes(mark) == []


def test_ctrl_c_on_a_terminal(start: Start, folder: Path) -> None:
    """The terminal sends it to its whole group: each process must get it once."""
    (folder / "train.py").write_text(WORKS.format(""))
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2", "train.py"]
        os.execv(sys.executable, command)
    at_work()
    os.write(terminal, b"\x03")
    said = b""
    try:
        while data := os.read(terminal, 1 << 16):
            said += data
    except OSError:
        pass  # EIO: nobody writes to it any more
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"stopped by Ctrl-C" in said
    assert Path("in_order_0").exists() and Path("in_order_1").exists()
