"""Fixtures of the tests of `ptools repro`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from warm import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A runner for `repro_script` whose processes start in milliseconds."""
    pytest.importorskip("torch")
    runner = Warm(
        tmp_path_factory.mktemp("warm"),
        "ptools.repro.child",
        "ptools.repro.recording.recorder",
        "ptools.repro.resume.recorder",
    )
    yield runner
    runner.close()
