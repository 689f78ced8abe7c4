"""Programs that start in milliseconds: they are forked from a process that has imported torch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptools.program.process import Ended

_HASH = "PYTHONHASHSEED"  # only a new interpreter takes it: there is a process for each


class Warm:
    """Runs programs so, in the current folder; can be a `runner`.

    `outputs` are those of the programs it ran.

    Args:
        folder: for files of its own.
        modules: the one whose `main` runs a program, and others to import beforehand.
    """

    def __init__(self, folder: Path, *modules: str) -> None:
        self.outputs: list[str] = []
        self._file = folder / "output"
        self._modules = modules
        self._servers: dict[str, subprocess.Popen[str]] = {}

    def __call__(self, words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> Ended:
        """Run what `warm_server.py` takes."""
        server = self._server(variables.get(_HASH, "0"))
        assert server.stdin and server.stdout
        variables = {**os.environ, **variables}
        request = {"words": words, "variables": variables, "output": str(self._file)}
        print(json.dumps({**request, "folder": os.getcwd()}), file=server.stdin, flush=True)  # noqa: PTH109
        code = int(server.stdout.readline())
        self.outputs.append(self._file.read_text())
        return Ended(code=code if code >= 0 else 128 - code, output=self.outputs[-1])

    def plain(self, script: Path) -> str:
        """What a script prints without us."""
        ended = self(["plain", str(script)], {}, False)
        assert ended.code == 0, ended.output
        return ended.output

    def close(self) -> None:
        """End the processes that fork."""
        for server in self._servers.values():
            server.communicate()

    def _server(self, hash_seed: str) -> subprocess.Popen[str]:
        if hash_seed not in self._servers:
            self._servers[hash_seed] = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("warm_server.py"), *self._modules],
                env={**os.environ, _HASH: hash_seed},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._servers[hash_seed]
