"""Programs that start in milliseconds: they are forked from a process that has imported torch."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptools.program.process import Ended


class Warm:
    """Runs programs so; can be the `runner` of `debug_script`.

    `outputs` are those of the programs it ran.
    """

    def __init__(self, folder: Path) -> None:
        self.outputs: list[str] = []
        self._file = folder / "output"
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> Ended:
        """Run what `warm_server.py` takes."""
        assert self._server.stdin and self._server.stdout
        request = {"words": words, "variables": variables, "output": str(self._file)}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        self.outputs.append(self._file.read_text())
        return Ended(code=code if code >= 0 else 128 - code, output=self.outputs[-1])

    def plain(self, script: Path) -> str:
        """What a script prints without us."""
        ended = self(["plain", str(script)], {}, False)
        assert ended.code == 0, ended.output
        return ended.output

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate()
