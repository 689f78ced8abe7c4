"""What `ptools repro` says of scripts with a planted cause, and of scripts that repeat.

    python tests/benchmarks/repro_scripts.py [--times 10] [--fresh] [PART OF A NAME ...]

The scripts are those of tests/repro/parting, where the true class and line are marked, and of
tests/repro/clean, which are run `--times` times. Runs are forked from processes that have imported
torch, one for each seed of hash(); `--fresh` starts an interpreter for each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import show, show_versions

sys.path.insert(0, str(Path(__file__).parents[1] / "repro"))
from planted import CLEAN, SCRIPTS, is_right, line_of, truth
from warm import Warm

from ptools.program.process import Runner
from ptools.repro import repro_script
from ptools.repro.report import ReproReport


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("parts", nargs="*", default=[""])
    options = parser.parse_args()
    os.environ.pop("PYTHONHASHSEED", None)
    os.environ["OMP_NUM_THREADS"] = "2"
    show_versions("numpy")
    with tempfile.TemporaryDirectory() as folder:
        warm = Warm(Path(folder), "ptools.repro.child", "ptools.repro.recording.recorder")
        runner = None if options.fresh else warm
        show_parting(chosen(SCRIPTS, options.parts), Path(folder), runner)
        show_clean(chosen(CLEAN, options.parts), Path(folder), runner, options.times)
        warm.close()


def chosen(scripts: Sequence[Path], parts: Sequence[str]) -> list[Path]:
    """Those whose names have one of the parts in them."""
    return [one for one in scripts if any(part in one.stem for part in parts)]


def show_parting(scripts: Sequence[Path], folder: Path, runner: Runner | None) -> None:
    """A row for each script: what is true, what was told, and what it took."""
    rows, right = [], 0
    for script in scripts:
        true = truth(script)
        report, seconds = reported(script, folder, runner, true.perturb)
        verdict = report.verdict
        is_true = is_right(verdict, script)
        right += is_true
        told = verdict.kind if verdict else "identical"
        line = line_of(verdict, script)
        rows.append(
            [
                script.stem,
                f"{true.kind} {true.field or true.line}",
                f"{told} {verdict.value if verdict and true.field else line}",
                "yes" if is_true else "no",
                str(len(report.runs)),
                f"{seconds:.1f}",
            ]
        )
    columns = ["script", "true", "told", "right", "runs", "seconds"]
    show(f"Programs that part: {right} of {len(rows)} right", columns, rows)


def show_clean(scripts: Sequence[Path], folder: Path, runner: Runner | None, times: int) -> None:
    """A row for each script: how often it was identical, and what was compared."""
    rows, alarms = [], 0
    for script in scripts:
        reports = [reported(script, folder, runner) for _ in range(times)]
        same = sum(one.verdict is None and one.exit_code == 0 for one, _ in reports)
        alarms += times - same
        report, seconds = reports[0]
        rows.append(
            [
                script.stem,
                f"{same} of {times}",
                str(report.steps),
                str(report.operations),
                str(report.beats),
                f"{seconds:.1f}",
            ]
        )
    columns = ["script", "identical", "steps", "operations", "beats", "seconds"]
    show(f"Programs that repeat: {alarms} false alarms", columns, rows)


def reported(
    script: Path, folder: Path, runner: Runner | None, perturb: Sequence[str] = ("hash", "fs")
) -> tuple[ReproReport, float]:
    """The report, from a new folder, and the seconds that it took."""
    inner = Path(tempfile.mkdtemp(dir=folder), "work")
    inner.mkdir()
    os.chdir(inner)
    began = time.perf_counter()
    report = repro_script(str(script), perturb=perturb, runner=runner)
    return report, time.perf_counter() - began


if __name__ == "__main__":
    main()
