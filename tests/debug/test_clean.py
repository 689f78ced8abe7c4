"""Scripts in which nothing is wrong, of the kinds that make false alarms."""

import os
import subprocess
import sys
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

from ptools.debug import debug_script

SCRIPTS = sorted(Path(__file__).with_name("clean").glob("*.py"))
DDP = str(Path(__file__).with_name("clean") / "distributed.py")
MODES = "watch nan inplace autograd memory".split()


@pytest.fixture(scope="module")
def plain(warm: Any) -> Any:
    """What a script prints without us."""
    return cache(warm.plain)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_nothing_is_found_and_the_losses_are_those_of_the_plain_run(
    script: Path, mode: str, warm: Any, plain: Any
) -> None:
    expected = plain(script)
    warm.outputs.clear()
    report = debug_script(str(script), mode=mode, runner=warm)
    assert not report.findings, report.findings[0]
    assert warm.outputs == [expected]
    assert report.exit_code == 0
    assert not [note for note in report.notes if "a bug of ptools" in note]


@pytest.fixture(scope="module")
def plain_ddp(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """The exit code and the output of each rank without us."""
    return _both([sys.executable, DDP], tmp_path_factory.mktemp("plain") / "store")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["nan", "inplace"])
def test_two_processes_of_ddp_print_what_they_print_without_us(
    mode: str, plain_ddp: list[tuple[int, str]], folder: Path
) -> None:
    ours = _both([sys.executable, "-m", "ptools", "debug", "--mode", mode, DDP], folder / mode)
    for (code, losses), (plain_code, plain_losses) in zip(ours, plain_ddp, strict=True):
        assert (code, plain_code) == (0, 0), losses
        assert losses.startswith(plain_losses)


def _both(command: list[str], store: Path) -> list[tuple[int, str]]:
    """Run a command as two ranks; exit code and output of each."""
    with ThreadPool(2) as pool:
        return pool.starmap(_rank, [(command, store, rank) for rank in range(2)])


def _rank(command: list[str], store: Path, rank: int) -> tuple[int, str]:
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "STORE": str(store), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr
