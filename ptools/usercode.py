"""Import a user's file or module, and say in one sentence what went wrong when that fails."""

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from ptools.errors import SHOW_TRACEBACK, UsageError
from ptools.files import shown_path

_STDLIB = sysconfig.get_path("stdlib")
_OURS = str(Path(__file__).parent) + os.sep
_GUARD = 'move the code that runs under `if __name__ == "__main__":`'


def load_file(path: Path) -> ModuleType:
    """Import a Python file under its own name, as spawned workers will.

    The name is the stem, or the dotted name when `__init__.py` files make the folders above a
    package. The top folder goes on `sys.path`, and the current one after everything else.

    Raises:
        UsageError: there is no such file, or importing it failed.
    """
    if not path.is_file():
        _missing_file(path)
    path = path.resolve()
    root, name = _package_of(path)
    if path.stem in sys.stdlib_module_names:
        _load_standard(path.stem)
    _search(root, first=True)
    _search(Path.cwd(), first=False)
    with _running(path.name, argv=[str(path)]):
        if "." in name or path.name == "__init__.py":
            module = _import_member(name, path)
            if module is not None:
                return module
        return _load_as(_free_name(name.rpartition(".")[2], path), path)


def load_module(name: str) -> ModuleType:
    """Import a dotted module as `python -m` would find it: the current folder first.

    Raises:
        UsageError: there is no such module, or importing it failed.
    """
    _search(Path.cwd(), first=True)
    with _running(name, argv=[name]):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not _is_missing_itself(error, name):
                raise
            raise UsageError(f"there is no module {name!r}", hint=_module_hint(name)) from error


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what user code prints to stderr: stdout belongs to our result."""
    with redirect_stdout(sys.stderr):
        yield


def is_user_code(filename: str) -> bool:
    """Whether a source file is the user's: not ours, not installed, not the standard library's."""
    if filename.startswith(("<", _OURS)):
        return False
    installed = {"site-packages", "dist-packages"} & set(Path(filename).parts)
    return not installed and not filename.startswith(_STDLIB)


def user_line(error: BaseException) -> str | None:
    """Where in the user's own code the error came up: `"model.py:12"`, or None."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_user_code(frame.filename):
            return f"{shown_path(frame.filename)}:{frame.lineno}"
    return None


def describe(error: BaseException) -> str:
    """The error as `ValueError: text`, cut to its first line, with the user's line if known."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    line = user_line(error)
    return f"{text} ({line})" if line else text


def _package_of(path: Path) -> tuple[Path, str]:
    """The folder to search and the dotted name under which `path` is found from there."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def _search(folder: Path, first: bool) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


def _import_member(name: str, path: Path) -> ModuleType | None:
    """The file as a member of its package; None if another package has that name."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_missing_itself(error, name):
            raise
        return None
    return module if _is_from(module, path) else None


def _is_missing_itself(error: ModuleNotFoundError, name: str) -> bool:
    """Whether it is the module or a package of its own that is missing, not one it imports."""
    return error.name is not None and f"{name}.".startswith(f"{error.name}.")


def _load_standard(stem: str) -> None:
    """Load the standard library's own module, before the folder of a user's one comes first."""
    before = list(sys.path)
    sys.path[:] = [folder for folder in before if folder.startswith(_STDLIB)]
    try:
        importlib.import_module(stem)
    finally:
        sys.path[:] = before


def _is_from(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).exists() and Path(file).samefile(path)


def _free_name(stem: str, path: Path) -> str:
    """The stem, unless another module has it: a user's `json.py` must not replace the real one."""
    name, count = stem, 1
    while name in sys.modules and not _is_from(sys.modules[name], path):
        count += 1
        name = f"{stem}_{count}"
    return name


def _load_as(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class Interpreter:
    """What was imported at one moment, to return to before user code is loaded again.

    A second load of one file runs it anew, and a second target finds its own `layers.py` rather
    than that of the first.
    """

    def __init__(self) -> None:
        self.modules = set(sys.modules)
        self.path = list(sys.path)

    def restore(self) -> None:
        """Forget the user's modules that were imported since; libraries stay."""
        sys.path[:] = self.path
        for name in sys.modules.keys() - self.modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and is_user_code(file):
                del sys.modules[name]


@contextmanager
def _running(label: str, argv: list[str]) -> Iterator[None]:
    """Run an import on the user's behalf; turn its failure into one sentence."""
    before, sys.argv = sys.argv, argv
    try:
        with quiet_stdout():
            yield
    except (KeyboardInterrupt, UsageError):
        raise
    except BaseException as error:
        _explain(error, label)
    finally:
        sys.argv = before


def _explain(error: BaseException, label: str) -> NoReturn:
    line = user_line(error) or label
    hint = SHOW_TRACEBACK
    if isinstance(error, SyntaxError):
        message = f"{shown_path(error.filename or label)}:{error.lineno}: {error.msg}"
        hint = (error.text or "").strip() or hint
    elif isinstance(error, ModuleNotFoundError) and error.name:
        message = f"{line} needs {error.name!r}, which is not installed"
        hint = _install_hint(error.name)
    elif isinstance(error, SystemExit):
        cause = "reads the command line" if _passes_argparse(error) else "exits"
        message, hint = f"{label} {cause} when it is imported, at {line}", _GUARD
    else:
        message = f"importing {label} raised {describe(error)}"
        if "no known parent package" in str(error):
            hint = "name the module with its package instead, such as package.module:Net"
    raise UsageError(message, hint=hint) from error


def _passes_argparse(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "argparse.py" for frame in frames)


def _install_hint(name: str) -> str:
    top = name.partition(".")[0]
    if importlib.util.find_spec(top) is not None:
        return f"{top!r} is there, but has no {name.partition('.')[2]!r}: is it the right version?"
    return f"pip install {top}, or, if it is your own, run where it lies or set PYTHONPATH"


def _missing_file(path: Path) -> NoReturn:
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"there is no file {path}, nor a folder {folder}")
    names = sorted(file.name for file in folder.glob("*.py"))
    near = difflib.get_close_matches(path.name, names, n=3) or names[:5]
    listed = ", ".join(str(folder / name) for name in near)
    hint = f"there is {listed}" if near else f"{folder.resolve()} holds no .py file"
    raise UsageError(f"there is no file {path}", hint=hint)


def _module_hint(name: str) -> str:
    file = Path(*name.split(".")).with_suffix(".py")
    if "." not in name:
        return f"a file is named {file}, a library model timm:{name} or torchvision:{name}"
    return f"modules are looked for from here and on sys.path; a file is named {file}"
