"""What is to be run, looked at before any process is started."""

import warnings
from pathlib import Path
from typing import Literal, NamedTuple

from ptools import script
from ptools.errors import UsageError

Kind = Literal["script", "module", "function"]


class Job(NamedTuple):
    """A script, a module or a function, and its arguments."""

    name: str  # a path, a module, or "path or module:function"
    arguments: tuple[str, ...] = ()
    kind: Kind = "script"


def check(job: Job) -> None:
    """Find in one process what would fail in all of them.

    Raises:
        UsageError: there is no such script or module, or Python cannot compile it.
    """
    if job.kind == "script":
        _compile(script.check_script(job.name), Path(job.name))
    elif job.kind == "module":
        origin = script.check_module(job.name).origin
        if origin is not None and origin.endswith(".py"):
            _compile(Path(origin).read_bytes(), Path(origin))


def _compile(source: bytes, file: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the processes will say it
            compile(source, str(file), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f"{file}:{line}" if line else str(file)
        message = getattr(error, "msg", None) or str(error)
        raise UsageError(f"{place}: {message}", hint="Python cannot compile it") from error
