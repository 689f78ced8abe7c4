"""Run a user's unmodified program in this process, as Python itself would.

Processes start with this file: it imports little, and nothing of torch.
"""

import builtins
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from ptools.imports import after_import

TYPE_CHECKING = False  # that of typing takes long
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

PARENT = "PTOOLS_PARENT"  # names the process that watches to the one that runs the program
_PR_SET_PDEATHSIG = 1
_OURS = os.path.dirname(__file__) + os.sep  # noqa: PTH120


def check_script(file: str) -> bytes:
    """The source of a script that is there to be run.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from ptools.errors import UsageError

    path = Path(file)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="give a script, or -m for a module")
    if path.exists() and not path.is_file():  # a pipe is read but once
        raise UsageError(f"{path} is not a regular file", hint="save the script to a file first")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no script {file}", hint=_near(path)) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def check_module(name: str) -> "ModuleSpec":
    """Where a module is that can be run, without importing the packages that it is in.

    Raises:
        UsageError: there is none.
    """
    from ptools.errors import UsageError

    spec = _spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec(f"{name}.__main__")
    if spec is None:
        raise UsageError(f"there is no module {name}", hint="give its name as for python -m")
    return spec


def run_script(file: str, arguments: "Sequence[str]") -> None:
    """Execute a file as `python FILE ARGUMENTS` does: as `__main__`, its folder first on the path.

    Whatever the program raises passes through, SystemExit too; `below` gives its own traceback.
    """
    path = os.path.join(Path.cwd(), file)  # noqa: PTH118, as Python has it, with `.` and `..`
    main = _new_main()
    main.__file__, main.__loader__ = path, SourceFileLoader("__main__", path)
    code = compile(Path(file).read_bytes(), path, "exec")
    sys.argv = [file, *arguments]
    first_on_path(Path(file).resolve().parent)
    _execute(code, main)


def run_module(name: str, arguments: "Sequence[str]") -> None:
    """Execute a module as `python -m NAME ARGUMENTS` does.

    Raises:
        ModuleNotFoundError: there is none of that name.
    """
    first_on_path(Path.cwd())
    code, spec = _module(name)
    main = _new_main()
    main.__spec__, main.__package__, main.__file__ = spec, spec.parent, spec.origin
    main.__loader__ = spec.loader
    sys.argv = [spec.origin or name, *arguments]
    _execute(code, main)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, even by kill -9 (on Linux)."""
    import ctypes
    import signal
    from contextlib import suppress

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before that call
        os._exit(1)


def first_on_path(folder: Path) -> None:
    """Have modules looked for in a folder first, unless Python was told to be safe from that."""
    if not sys.flags.safe_path:
        sys.path.insert(0, str(folder))


def below(error: BaseException) -> TracebackType | None:
    """The traceback of an error from the user's program on, without the frames of ours above."""
    here = error.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename.startswith(_OURS):
        here = here.tb_next
    return here


def exit_code(error: SystemExit) -> int:
    """The code with which Python ends for it."""
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def seed(number: int) -> None:
    """Seed Python's, NumPy's and torch's generators, each before the program can use it."""
    import random

    random.seed(number)
    after_import("numpy", lambda numpy: numpy.random.seed(number % 2**32))
    after_import("torch", lambda torch: torch.manual_seed(number))


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={}, __cached__=None)
    return main


def _execute(code: CodeType, main: ModuleType) -> None:
    sys.modules["__main__"] = main  # also for what pickles, and for processes it spawns
    exec(code, main.__dict__)


def _module(name: str) -> "tuple[CodeType, ModuleSpec]":
    from importlib.util import find_spec

    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = find_spec(f"{name}.__main__")
    code = spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
    if spec is None or code is None:
        raise ModuleNotFoundError(f"No module named {name}", name=name)
    return code, spec


def _spec(name: str) -> "ModuleSpec | None":
    from importlib.machinery import PathFinder

    spec, path = None, [str(Path.cwd()), *sys.path]
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _near(script: Path) -> str:
    import difflib

    folder = script.parent if script.parent.is_dir() else Path()
    names = [str(file) for file in folder.glob("*.py")]
    near = difflib.get_close_matches(str(script), names, n=1)
    return f"did you mean {near[0]}?" if near else "the first word that is no option is the script"
