import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import ptools.target
from ptools import __version__
from ptools.cli import main
from ptools.errors import PtoolsError, UsageError

Write = Callable[[str, str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(write: Write) -> Path:
    return write("model.py", "from torch import nn\nmodel = nn.Linear(2, 1)\n")


@pytest.fixture
def fails_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make every command that resolves a target raise."""

    def install(error: BaseException) -> None:
        def resolve(*_: object) -> None:
            raise error

        monkeypatch.setattr(ptools.target, "resolve", resolve)

    return install


def test_a_result_is_code_0_with_nothing_on_stderr(model: Path, capsys: Capture) -> None:
    assert main(["summary", "model.py"]) == 0
    out, err = capsys.readouterr()
    assert "Linear" in out
    assert err == ""


@pytest.mark.parametrize("arguments", [["--version"], ["--debug", "--version"]])
def test_version_is_answered_without_typer(arguments: list[str]) -> None:
    code = (
        f"import sys; from ptools.cli import main; main({arguments}); print('typer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"ptools {__version__}\nFalse\n"


def test_no_arguments_show_the_help(capsys: Capture) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: ptools ")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["sumary"], "No such command 'sumary'. Did you mean 'summary'?", "ptools --help"),
        (["summary", "x.py", "--jsn"], "No such option: --jsn", "ptools summary --help"),
        (["summary"], "Missing argument 'TARGET'", "ptools summary --help"),
        (["--nope"], "No such option: --nope", "ptools --help"),
        (["summary", "absent.py"], "there is no file absent.py", ""),
    ],
)
def test_usage_errors_are_code_2(
    folder: Path, capsys: Capture, arguments: list[str], message: str, hint: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert hint in err.partition("hint: ")[2]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PtoolsError("it broke", hint="mend it"), 1, "error: it broke\nhint: mend it\n"),
        (PtoolsError("they differ", exit_code=3), 3, "error: they differ\n"),
        (UsageError("[brackets] stay"), 2, "error: [brackets] stay\n"),
        (PermissionError(13, "Permission denied", "x.csv"), 1, "Permission denied: 'x.csv'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_messages_and_codes(
    fails_with: Callable[[BaseException], None],
    capsys: Capture,
    error: BaseException,
    code: int,
    text: str,
) -> None:
    fails_with(error)
    assert main(["summary", "x.py"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), EOFError("short")])
def test_a_bug_keeps_its_traceback(
    fails_with: Callable[[BaseException], None], capsys: Capture, error: Exception
) -> None:
    fails_with(error)
    assert main(["summary", "x.py"]) == 70
    err = capsys.readouterr().err
    assert f"{type(error).__name__}: {error}" in err
    assert "Traceback" in err
    assert "a bug of ptools" in err


def test_an_exit_of_a_command_is_its_code(
    fails_with: Callable[[BaseException], None],
) -> None:
    import typer

    fails_with(typer.Exit(3))
    assert main(["summary", "x.py"]) == 3


def test_debug_raises(
    fails_with: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(PtoolsError("it broke"))
    with pytest.raises(PtoolsError):
        main(["--debug", "summary", "x.py"])
    monkeypatch.setenv("PTOOLS_DEBUG", "1")
    with pytest.raises(PtoolsError):
        main(["summary", "x.py"])
    monkeypatch.setenv("PTOOLS_DEBUG", "0")
    assert main(["summary", "x.py"]) == 1


def test_json_errors_are_one_object_on_stderr(folder: Path, capsys: Capture) -> None:
    assert main(["summary", "absent.py", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["error"]["message"] == "there is no file absent.py"
    assert main(["summary", "--json"]) == 2
    assert set(json.loads(capsys.readouterr().err)["error"]) == {"message", "hint"}


def test_json_stays_clean_when_the_model_prints(write: Write, capsys: Capture) -> None:
    write("model.py", "from torch import nn\nprint('hello')\nmodel = nn.Linear(2, 1)\n")
    assert main(["summary", "model.py", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["command"] == "summary"
    assert "hello" in err


# In a process of its own


def ptools_process(*arguments: str, **options: object) -> "subprocess.Popen[bytes]":
    call = [sys.executable, "-m", "ptools", *arguments]
    return subprocess.Popen(call, stdout=-1, stderr=-1, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("arguments", [["summary", "model.py"], ["summary", "--help"]])
def test_a_closed_pipe_ends_quietly(model: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = [sys.executable, "-m", "ptools", *arguments]
    done = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_full_disk_is_an_error(model: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    call = [sys.executable, "-m", "ptools", "summary", "model.py"]
    with full.open("w") as stdout:
        done = subprocess.run(call, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno 28]")
    assert "Exception ignored" not in done.stderr


def test_ctrl_c_while_the_model_loads(write: Write) -> None:
    write(
        "model.py",
        "import sys, time\nsys.stderr.write('ready')\nsys.stderr.flush()\ntime.sleep(60)",
    )
    process = ptools_process("summary", "model.py")
    assert process.stderr is not None
    assert process.stderr.read(5) == b"ready"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")


# Configuration: flag > environment > pyproject.toml > default


def is_json(capsys: Capture, *arguments: str) -> bool:
    assert main(["summary", "model.py", *arguments]) == 0
    return capsys.readouterr().out.startswith("{")


def test_precedence(
    model: Path, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert not is_json(capsys)
    write("pyproject.toml", "[tool.ptools.summary]\njson = true\n")
    assert is_json(capsys)
    monkeypatch.setenv("PTOOLS_SUMMARY_JSON", "0")
    assert not is_json(capsys)
    assert is_json(capsys, "--json")


def test_the_nearest_pyproject_counts(
    model: Path, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write("pyproject.toml", "[tool.ptools.summary]\njson = true\n")
    write("sub/model.py", model.read_text())
    monkeypatch.chdir("sub")
    assert is_json(capsys)
    write("sub/pyproject.toml", "[project]\nname = 'x'\n")
    assert not is_json(capsys)


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ("[tool.ptools.sumary]", "[tool.ptools.sumary] names no command", "did you mean summary?"),
        ("[tool.ptools.summary]\njsn = 1", "has no option 'jsn'", "did you mean json?"),
        ("[tool.ptools.summary]\narg = ['a=1']", "has no option 'arg'", "json"),
        ("[tool.ptools.summary]\ntarget = 'model.py'", "has no option 'target'", "json"),
        ("[tool.ptools]\nsummary = 3", "is no table", "under it"),
        ("[tool]\nptools = 3", "names no command", "summary"),
        ("[tool.ptools.summary]\njson = 'maybe'", "Invalid value for '--json'", "summary --help"),
        ("[tool.ptools", "cannot read", ""),
    ],
)
def test_a_wrong_pyproject_is_named(
    model: Path, write: Write, capsys: Capture, table: str, message: str, hint: str
) -> None:
    path = write("pyproject.toml", table)
    assert main(["summary", "model.py"]) == 2
    error, _, shown = capsys.readouterr().err.partition("\nhint: ")
    assert str(path) in error
    assert message in error
    assert hint in shown


def test_a_wrong_environment_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PTOOLS_SUMMARY_JSON", "maybe")
    assert main(["summary", "model.py"]) == 2
    assert "(from PTOOLS_SUMMARY_JSON)" in capsys.readouterr().err


def test_help_and_version_do_not_read_the_configuration(write: Write, capsys: Capture) -> None:
    write("pyproject.toml", "[tool.ptools")
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0


def test_long_option_names_are_the_keys(write: Write) -> None:
    from typer.core import TyperOption

    from ptools.cli import config
    from ptools.cli.app import group

    option = TyperOption(
        param_decls=["low_rate", "--min-rate", "-m"],
        type_descriptor=group.commands["summary"].params[0].type_descriptor,
    )
    command = SimpleNamespace(params=[option])
    for key in ("min-rate", "min_rate"):
        write("pyproject.toml", f"[tool.ptools.profile-loader]\n{key} = 7\n")
        assert config.load({"profile-loader": command}) == {"profile-loader": {"low_rate": 7}}


def test_completion_offers_commands() -> None:
    environment = {
        **os.environ,
        "_PTOOLS_COMPLETE": "complete_bash",
        "COMP_WORDS": "ptools sum",
        "COMP_CWORD": "1",
    }
    process = ptools_process(env=environment)
    assert process.communicate()[0] == b"summary\n"
