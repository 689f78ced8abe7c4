"""Scripts written from threads in which somebody looked for a bug: its lines are marked."""

import sys
from pathlib import Path
from typing import Any

import pytest

from ptools.debug import DebugReport, debug_script

sys.path.insert(0, str(Path(__file__).parent))
from marked import SCRIPTS, kind_of, lines, marks, mode_of


def check(report: DebugReport, script: Path) -> None:
    """Hold the report against the marks in the script."""
    assert len(report.findings) == 1, report
    (finding,) = report.findings
    named = lines(finding, script)
    assert {role: named[role] for role in marks(script)} == marks(script), finding
    assert finding.kind == kind_of(script)
    assert report.exit_code == 3


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_marked_lines_are_found(script: Path, warm: Any) -> None:
    check(debug_script(str(script), mode=mode_of(script), seed=0, runner=warm), script)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS[::22], ids=lambda script: script.stem)
def test_the_marked_lines_are_found_in_processes_of_their_own(script: Path) -> None:
    check(debug_script(str(script), mode=mode_of(script)), script)
