"""Scripts that repeat, of the kinds that make false alarms: both runs are identical."""

import sys
from pathlib import Path
from typing import Any

import pytest

from ptools.repro.engine import repro_script

sys.path.insert(0, str(Path(__file__).parent))
from planted import CLEAN, is_slow

_MEASURED = [
    pytest.param(one, id=one.stem, marks=pytest.mark.slow if is_slow(one) else ()) for one in CLEAN
]


@pytest.fixture(autouse=True)
def one_more_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed of hash() takes an interpreter: the benchmark tries them all."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setattr("ptools.repro.search._HASH_SEEDS", (3,))


@pytest.mark.parametrize("script", _MEASURED)
def test_a_program_that_repeats_is_identical(script: Path, folder: Path, warm: Any) -> None:
    warm.outputs.clear()
    report = repro_script(str(script), runner=warm)
    assert report.verdict is None, report.verdict
    assert report.exit_code == 0, warm.outputs[0]
    assert report.steps > 2
    assert report.operations > 20
    assert report.nbytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizers", "scatter_and_index"])
def test_each_operation_of_a_whole_program_is_identical(name: str, folder: Path, warm: Any) -> None:
    script = Path(__file__).with_name("clean") / f"{name}.py"
    beginning = repro_script(str(script), runner=warm)
    whole = repro_script(str(script), exact=True, runner=warm)
    assert whole.verdict is None
    assert whole.operations > 2 * beginning.operations
