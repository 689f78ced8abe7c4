"""A process that has imported torch and forks for each program: it starts in milliseconds.

Run `warm_server.py MODULE...`. Each line of the input is a request in JSON: `words`, as `main` of
the first module takes them, or `plain` or `anomaly` and a script; the environment's `variables`;
the current `folder`; the file that takes the `output`. Each line of the output is an exit code.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch._dynamo
import torch.distributed
import torch.func
import torch.utils.checkpoint
import torch.utils.data

from ptools.script import exit_code

_CHILD, *_ = [importlib.import_module(name) for name in sys.argv[1:]]


def main() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _answer(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)  # to take torch down takes a second


def _answer(words: Sequence[str], variables: Mapping[str, str], folder: str, output: str) -> None:
    with Path(os.devnull).open() as nothing, Path(output).open("wb") as file:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    _be_new()
    code = 0
    try:
        _run(*words)
    except SystemExit as error:
        code = exit_code(error)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _be_new() -> None:
    """What a new process has of its own, and takes from the environment."""
    torch.seed()
    np.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch._dynamo.config.disable = "TORCHDYNAMO_DISABLE" in os.environ


def _run(kind: str, *words: str) -> None:
    if kind in ("plain", "anomaly"):
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        torch.autograd.set_detect_anomaly(kind == "anomaly")
        sys.argv = [*words]
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = ["ptools", kind, *words]
        _CHILD.main()


if __name__ == "__main__":
    main()
