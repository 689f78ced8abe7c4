import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ptools.launcher.preflight import PreflightReport, run, run_preflight
from ptools.launcher.preflight.render import page
from ptools.launcher.preflight.report import Row

BROKEN = """
import os, time
from ptools.launcher.preflight import ranks

def broken(device):
    if os.environ["RANK"] != "1":
        return CHECK(device)
    {what}

CHECK = ranks.CHECKS["{check}"]
ranks.CHECKS["{check}"] = broken
ranks.main()
"""


@pytest.fixture(scope="module")
def good() -> PreflightReport:
    return run_preflight(2)


@pytest.fixture
def broken(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], PreflightReport]:
    """A preflight of two processes where one does `what` at a check."""

    def run_broken(check: str, what: str) -> PreflightReport:
        write("broken.py", BROKEN.format(check=check, what=what))
        monkeypatch.setattr(run, "RANKS", "broken")
        return run_preflight(2, timeout=3)

    return run_broken


def states(report: PreflightReport) -> dict[str, str]:
    return {check.name: check.state for check in report.checks}


def test_two_processes_agree(good: PreflightReport) -> None:
    assert set(states(good).values()) == {"ok"}
    assert list(states(good))[1:] == [
        "process group",
        "all_reduce of integers",
        "all_reduce of floats",
        "broadcast",
        "barrier",
        "DDP step",
        "bandwidth",
        "end",
    ]
    assert (good.ok, good.exit_code, good.backend) == (True, 0, "gloo")
    assert good.verdict == "ok: 2 processes agree, and train as one would (gloo)"


def test_bus_bandwidth_is_that_of_a_ring(good: PreflightReport) -> None:
    """With two processes each link carries the message once: 2 (n - 1) / n = 1."""
    assert [one.size for one in good.bandwidth] == [4096, 65536, 1 << 20, 1 << 24]
    for one in good.bandwidth:
        assert one.seconds > 0
        assert one.bus == pytest.approx(one.size / one.seconds)


def test_the_table_holds_the_facts_of_this_machine(good: PreflightReport) -> None:
    import torch

    rows = {row.name: row.value for row in good.rows}
    assert rows["torch"] == torch.__version__
    assert rows["python"] == ".".join(map(str, sys.version_info[:3]))
    assert rows["NCCL"] == "not measured: no GPU in use"
    assert 1024 <= int(rows["free port"]) < 65536
    assert {"GPUs", "driver", "CUDA", "cores", "memory", "/dev/shm", "open files"} <= rows.keys()


def test_the_page_ends_with_the_verdict(good: PreflightReport) -> None:
    warned = replace(good, rows=(*good.rows, Row("disk", "full", "empty it")))
    lines = page(warned).splitlines()
    assert lines[-1] == good.verdict
    assert any(line.strip() == "! empty it" for line in lines)
    assert any(line.split() == ["broadcast", "ok"] for line in lines)
    assert any(line.startswith("    64 KiB") for line in lines)


def test_the_report_is_json(good: PreflightReport) -> None:
    found = json.loads(json.dumps(good.to_dict()))
    assert (found["verdict"], found["exit_code"]) == (good.verdict, 0)
    assert found["checks"][0] == {"name": "start", "state": "ok", "ranks": [], "detail": ""}


def test_nothing_that_ranks_print_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    report = run_preflight(1)
    assert report.verdict == "ok: 1 process trains as expected (gloo)"
    assert report.bandwidth == ()
    assert "bus bandwidth: not measured" in page(report)
    assert capfd.readouterr() == ("", "")


def test_wrong_sums_are_seen(broken: Callable[[str, str], PreflightReport]) -> None:
    """Rank 1 contributes something else, so that the sum is wrong everywhere."""
    what = "ranks.dist.all_reduce(ranks.torch.zeros(1000, dtype=ranks.torch.int64))"
    report = broken("all_reduce of integers", what)
    assert report.verdict.startswith("failed: all_reduce of integers on rank 0: expected 1, got 0")
    assert report.exit_code == 1
    found = states(report)
    assert found.pop("all_reduce of integers") == "failed"
    assert set(found.values()) == {"ok"}  # all others were still tried


LAZY = """
from ptools.launcher.preflight import ranks
ranks.dist.broadcast = lambda tensor, source: None
ranks.dist.barrier = lambda: None
ranks.nn.parallel.DistributedDataParallel = lambda model: model
ranks.main()
"""


def test_what_does_not_happen_is_seen(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lazy.py", LAZY)
    monkeypatch.setattr(run, "RANKS", "lazy")
    report = run_preflight(2)
    failed = {check.name: check.ranks for check in report.checks if check.state == "failed"}
    # The last rank comes late to the barrier: it cannot leave too early.
    assert failed == {"broadcast": (0, 1), "barrier": (0,), "DDP step": (0, 1)}
    assert report.verdict.startswith("failed: broadcast on ranks 0, 1: from rank ")


def test_an_error_is_named_with_its_check_and_rank(
    broken: Callable[[str, str], PreflightReport],
) -> None:
    report = broken("barrier", "raise OSError('no such network')")
    assert report.verdict == "failed: barrier on rank 1: OSError: no such network"
    assert states(report)["broadcast"] == "ok"
    assert states(report)["DDP step"] == "not run"
    assert "barrier                 failed on rank 1: OSError: no such network" in page(report)


def test_a_killed_process_is_named_with_its_check_and_rank(
    broken: Callable[[str, str], PreflightReport],
) -> None:
    report = broken("DDP step", "os.kill(os.getpid(), 9)")
    assert report.verdict == "failed: DDP step on rank 1: killed by SIGKILL"


def test_a_crash_after_all_was_done_is_a_failure(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("late.py", "from ptools.launcher.preflight import ranks\nranks.main()\nranks.os._exit(7)")
    monkeypatch.setattr(run, "RANKS", "late")
    assert run_preflight(1).verdict == "failed: end on rank 0: exit code 7"


def test_a_process_that_does_not_answer_is_named_with_its_check(
    broken: Callable[[str, str], PreflightReport],
) -> None:
    report = broken("broadcast", "time.sleep(600)")
    assert report.verdict == "failed: broadcast on rank 1: no answer for 3 s"
    assert report.seconds < 60


def test_processes_that_do_not_start_are_named(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("torchless.py", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setattr(run, "RANKS", "torchless")
    report = run_preflight(1)
    assert report.verdict == (
        "failed: start on rank 0: ImportError: libcudart.so.12: cannot open shared object file"
    )


def test_a_signal_is_the_exit_code(good: PreflightReport) -> None:
    stopped = replace(good, signal=signal.SIGINT)
    assert (stopped.ok, stopped.exit_code, stopped.verdict) == (False, 130, "stopped by SIGINT")


def test_the_launcher_itself_imports_no_torch() -> None:
    text = "import sys, ptools.launcher.preflight.render; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
