import io
import json
import sys

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ptools import __version__, console

LONG = "/data/" + "x" * 300 + "/layer.weight"


def table(*cells: str) -> Table:
    made = Table(title="parameters")
    for number, _ in enumerate(cells):
        made.add_column(f"column {number}")
    made.add_row(*cells)
    return made


class Stdout(io.TextIOWrapper):
    """A stdout of any encoding, on or off a terminal."""

    def __init__(self, encoding: str = "utf-8", tty: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Stdout:
    """Make stdout a terminal; called in the test, since pytest sets stdout before each phase."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    stdout = Stdout(tty=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    return stdout


def test_a_pipe_gets_every_cell_on_one_line_and_no_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show(table(LONG, LONG.upper()))
    out = capsys.readouterr().out
    assert any(LONG in line and LONG.upper() in line for line in out.splitlines())
    assert "\x1b" not in out
    assert "…" not in out


def test_a_pipe_page_is_as_wide_as_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    console.show(Panel("short"))
    assert max(map(len, capsys.readouterr().out.splitlines())) == 80


def test_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.show("shape [1, 3] [bold]kept[/bold]")
    console.note("[red]note[/red]")
    assert capsys.readouterr() == ("shape [1, 3] [bold]kept[/bold]\n", "[red]note[/red]\n")


def test_a_terminal_gets_styles_and_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = terminal(monkeypatch)
    console.show(table("a", "b"))
    console.show(Panel("x"))
    assert "\x1b[" in stdout.text()
    assert "─" * 58 in stdout.text()
    assert "─" * 59 not in stdout.text()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = terminal(monkeypatch)
    console.show(Text("red", style="red"))
    assert "\x1b[31m" in stdout.text()
    monkeypatch.setenv("NO_COLOR", "1")
    console.show(Text("blue", style="blue"))
    assert stdout.text().endswith("\nblue\n")


def test_ascii_survives_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Stdout(encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    console.show(table("größe", "plain"))
    console.write("naïve,1\n")
    assert "plain" in stdout.text()
    assert "gr\\xf6\\xdfe" in stdout.text()
    assert "na\\xefve,1" in stdout.text()


def test_json_is_one_object_with_the_common_fields(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_json("summary", {"macs": 7, "name": "é"})
    assert json.loads(capsys.readouterr().out) == {
        "ptools": __version__,
        "command": "summary",
        "schema": 1,
        "macs": 7,
        "name": "é",
    }


def test_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON"):
        console.show_json("summary", {"loss": float("nan")})


def test_messages_go_to_stderr_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    console.note(LONG)
    console.warn("careful")
    console.error("broken", hint=f"ptools summary {LONG}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        LONG,
        "warning: careful",
        "error: broken",
        f"hint: ptools summary {LONG}",
    ]


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("reading", total=2) as advance:
        advance()
        advance(1, description="writing")
    assert capsys.readouterr() == ("", "")


def test_progress_draws_on_a_terminal_stderr_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Stdout(tty=True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stderr)
    with console.progress("reading", total=2) as advance:
        advance(2)
    assert "reading" in stderr.text()
    assert capsys.readouterr().out == ""
