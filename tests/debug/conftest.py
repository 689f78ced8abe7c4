"""Fixtures of the tests of `ptools debug`."""

import linecache
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from warm import Warm  # noqa: E402


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A runner for `debug_script` whose processes start in milliseconds."""
    pytest.importorskip("torch")
    runner = Warm(tmp_path_factory.mktemp("warm"), "ptools.debug.child", "ptools.debug.modes")
    yield runner
    runner.close()


class Followed:
    """What mode `autograd` says of a script that was run within it."""

    def __init__(self, text: str, log: Any, printed: str) -> None:
        self.findings = log.findings
        self.notes = log.notes
        self.tables = log.tables
        self.printed = printed
        self._text = text

    @property
    def kinds(self) -> list[str]:
        """The kinds of the findings."""
        return [one.kind for one in self.findings]

    def marked(self) -> bool:
        """Whether the lines of the findings are those marked `# <- ROLE` in the script."""
        told = {(role, one.line) for f in self.findings for role, one in f.places}
        asked = {
            (line.rpartition("# <- ")[2], number)
            for number, line in enumerate(self._text.splitlines(), 1)
            if "# <- " in line
        }
        return bool(asked) and asked <= told


@pytest.fixture
def follow(folder: Path, capsys: Any) -> Any:
    """Run a script within mode `autograd`, in this process."""
    torch = pytest.importorskip("torch")
    from ptools.debug.gradients.mode import Gradients
    from ptools.debug.mode import Log, watching
    from ptools.program.clock import Clock
    from ptools.program.modules import Modules

    def run(text: str, tensorboard: str | None = None, fails: str = "") -> Followed:
        file = folder / f"script_{len(text)}.py"
        file.write_text(text)
        linecache.checkcache(str(file))
        log = Log(keep_going=True)
        mode = Gradients(log, Clock(), Modules(), tensorboard=tensorboard)
        code = compile(text, str(file), "exec")
        torch.manual_seed(0)
        with (
            watching(mode),
            pytest.raises(RuntimeError, match=fails) if fails else nullcontext(),
        ):
            exec(code, {"__name__": "__main__"})
        mode.finish()
        return Followed(text, log, capsys.readouterr().out)

    return run
