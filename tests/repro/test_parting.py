"""Scripts whose runs part by one planted cause: the verdict names its class, and its line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptools.repro.engine import repro_script

sys.path.insert(0, str(Path(__file__).parent))
from planted import SCRIPTS, is_slow, line_of, truth

_MEASURED = [
    pytest.param(one, id=one.stem, marks=pytest.mark.slow if is_slow(one) else ())
    for one in SCRIPTS
]


@pytest.fixture
def inner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder within another of the test's own, which is not put back between runs."""
    inner = folder / "work"
    inner.mkdir()
    monkeypatch.chdir(inner)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    return inner


@pytest.mark.parametrize("script", _MEASURED)
def test_the_class_and_the_line_are_the_planted_ones(script: Path, inner: Path, warm: Any) -> None:
    true = truth(script)
    report = repro_script(str(script), perturb=true.perturb, runner=warm)
    assert report.exit_code == 3
    assert report.verdict is not None
    assert report.verdict.kind == true.kind, report.verdict
    if true.line is not None:
        assert line_of(report.verdict, script) == true.line, report.verdict
    if true.field:
        assert report.verdict.value.startswith(true.field), report.verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random_model_before_seed", "order_glob"])
def test_processes_of_their_own_part_at_the_same_line(name: str, inner: Path) -> None:
    script = Path(__file__).with_name("parting") / f"{name}.py"
    command = [sys.executable, "-m", "ptools", "repro", str(script)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 3, told.stderr
    assert f"{script.name}:{truth(script).line}" in told.stdout.splitlines()[-1]
