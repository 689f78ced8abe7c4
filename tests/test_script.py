"""Running a program as Python itself would, and what is wrong with it before that."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools import script
from ptools.errors import UsageError

Write = Callable[[str, str], Path]
RUN = "import sys; from ptools import script; script.run_{kind}(sys.argv[1], sys.argv[2:])"
SHOW = """
import sys
names = "__name__ __file__ __spec__ __package__ __cached__ __doc__".split()
print({name: globals()[name] for name in names}, type(__loader__).__name__, __annotations__)
print(sys.argv, sys.path[0], sys.modules["__main__"].__dict__ is globals())
"""


@pytest.mark.parametrize("name", ["show.py", "./show.py", "sub/../show.py", "sub/deep.py"])
def test_a_script_sees_what_it_sees_under_python(name: str, write: Write) -> None:
    write("show.py", SHOW)
    write("sub/deep.py", SHOW)
    call = [sys.executable, name, "a", "--b"]
    expected = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    call = [sys.executable, "-c", RUN.format(kind="script"), name, "a", "--b"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == expected


@pytest.mark.parametrize("name", ["package", "package.sub"])
def test_a_module_sees_its_name_and_its_words(name: str, write: Write) -> None:
    write("package/__init__.py", "")
    write("package/__main__.py", SHOW)
    write("package/sub.py", SHOW)
    call = [sys.executable, "-m", name, "a"]
    expected = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    call = [sys.executable, "-c", RUN.format(kind="module"), name, "a"]
    done = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert done.splitlines()[1] == expected.splitlines()[1]
    assert f"'__file__': '{Path.cwd()}" in done


def test_a_script_that_is_there_is_read(write: Write) -> None:
    write("train.py", "x = 1\n")
    assert script.check_script("train.py") == b"x = 1\n"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "is a folder"),
        ("sub", "sub is a folder"),
        ("none.py", "there is no script none.py"),
        ("/dev/null", "/dev/null is not a regular file"),
    ],
)
def test_a_script_that_cannot_be_run_is_refused(file: str, message: str, write: Write) -> None:
    write("sub/inner.py", "")
    with pytest.raises(UsageError, match=message):
        script.check_script(file)


def test_a_name_that_is_nearly_right_is_offered(write: Write) -> None:
    write("train.py", "")
    with pytest.raises(UsageError) as error:
        script.check_script("trian.py")
    assert error.value.hint == "did you mean train.py?"


def test_a_module_is_found_without_importing_its_package(write: Write) -> None:
    write("loud/__init__.py", "raise AssertionError('imported')")
    write("loud/__main__.py", "")
    assert script.check_module("loud").name.endswith("__main__")
    with pytest.raises(UsageError, match=r"there is no module loud\.none"):
        script.check_module("loud.none")


@pytest.mark.parametrize(
    ("error", "code"),
    [(SystemExit(), 0), (SystemExit(None), 0), (SystemExit(5), 5), (SystemExit("why"), 1)],
)
def test_the_code_of_an_exit(error: SystemExit, code: int) -> None:
    assert script.exit_code(error) == code
