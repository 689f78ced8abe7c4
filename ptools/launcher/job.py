"""What is to be run, looked at before any process is started."""

import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal, NamedTuple

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
        _check_script(Path(job.name))
    elif job.kind == "module":
        _check_module(job.name)


def _check_script(script: Path) -> None:
    if script.is_dir():
        raise UsageError(f"{script} is a folder", hint="give a script, or -m for a module")
    try:
        source = script.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no script {script}", hint=_near(script)) from None
    except OSError as error:
        raise UsageError(f"cannot read {script}: {error.strerror}") from error
    _compile(source, script)


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


def _near(script: Path) -> str:
    import difflib

    folder = script.parent if script.parent.is_dir() else Path()
    names = [str(file) for file in folder.glob("*.py")]
    near = difflib.get_close_matches(str(script), names, n=1)
    return f"did you mean {near[0]}?" if near else "the first word that is no option is the script"


def _check_module(name: str) -> None:
    spec = _spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec(f"{name}.__main__")
    if spec is None:
        raise UsageError(f"there is no module {name}", hint="give its name as for python -m")
    if spec.origin is not None and spec.origin.endswith(".py"):
        _compile(Path(spec.origin).read_bytes(), Path(spec.origin))


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, without importing the packages that it is in."""
    spec, path = None, [str(Path.cwd()), *sys.path]
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec
