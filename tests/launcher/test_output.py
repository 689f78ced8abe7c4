"""What the processes print: all of it into the logs, and the first rank's to the screen."""

import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Launch = Callable[..., subprocess.CompletedProcess[bytes]]
Command = Callable[[str, int, str], list[str]]


def test_the_first_rank_is_passed_on_byte_for_byte_and_the_others_are_silent(
    launch: Launch, folder: Path
) -> None:
    done = launch(r"""
data = bytes(range(256)) * 5000 + b"no end of line %d" % rank
say(data)
say(b"err\r\xff\xfe" * 1000, 2)
(folder / f"expected_{rank}").write_bytes(data)
""")
    assert done.stdout == (folder / "expected_0").read_bytes()
    assert done.stderr == b"err\r\xff\xfe" * 1000
    for rank in range(2):
        log = (folder / f"rank_{rank}.log").read_bytes()
        assert len(log) == len(done.stdout) + len(done.stderr)
    assert log == (folder / "expected_1").read_bytes() + done.stderr


def test_stdout_and_stderr_stay_in_order_where_they_go_to_the_same_place(
    command: Command, folder: Path
) -> None:
    script = 'for number in range(500):\n    say(f"{number}\\n", 1 + number % 2)'
    done = subprocess.run(
        command(script, 2, "first"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    expected = b"".join(b"%d\n" % number for number in range(500))
    assert done.stdout == expected
    assert [(folder / f"rank_{rank}.log").read_bytes() for rank in range(2)] == [expected] * 2


def test_on_a_terminal_the_first_rank_has_one_of_the_same_size(
    on_terminal: Callable[..., bytes], folder: Path
) -> None:
    seen = on_terminal(r"""
say(f"{os.isatty(1)} {os.isatty(2)} {os.get_terminal_size(1).columns} \x1b[31mred\x1b[0m\n")
for percent in range(3):
    say(f"\r{percent}%")
say("\nresize\n")
while os.get_terminal_size(1).columns != 77:
    time.sleep(0.01)
say("now 77")
""")
    text = b"True True 50 \x1b[31mred\x1b[0m\n\r0%\r1%\r2%\nresize\nnow 77"
    assert seen == text.replace(b"\n", b"\r\n")  # by the terminal, and once
    assert (folder / "rank_0.log").read_bytes() == text


def test_a_reader_that_stops_does_not_stop_the_run(command: Command, folder: Path) -> None:
    script = "for number in range(50_000):\n    say(f'{number}\\n')"
    launcher = subprocess.Popen(command(script, 2, "all"), stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    assert launcher.stdout.read(10)
    launcher.stdout.close()
    assert launcher.wait(timeout=60) == 0
    expected = b"".join(b"%d\n" % number for number in range(50_000))
    assert [(folder / f"rank_{rank}.log").read_bytes() for rank in range(2)] == [expected] * 2


def test_a_slow_reader_holds_up_the_one_who_prints_and_not_the_watch(
    command: Command, folder: Path
) -> None:
    script = """
if rank == 0:
    say("0" * 8_000_000)
else:
    time.sleep(0.3)
    say("other")
"""
    launcher = subprocess.Popen(command(script, 2, "first"), stdout=subprocess.PIPE)
    log = folder / "rank_1.log"
    until = time.monotonic() + 30
    while not (log.exists() and log.read_bytes() == b"other"):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert (folder / "rank_0.log").stat().st_size < 8_000_000
    assert launcher.communicate(timeout=60)[0] == b"0" * 8_000_000


def test_a_full_disk_is_told_once_and_the_run_goes_on(launch: Launch, folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    for rank in range(2):
        (folder / f"rank_{rank}.log").symlink_to("/dev/full")
    done = launch('for number in range(3):\n    say(f"{number}\\n")\n    time.sleep(0.1)')
    assert done.stdout == b"0\n1\n2\n"
    told = re.fullmatch(rb"error: the log (.*) ends early: (.*)\n", done.stderr)
    assert told is not None
    assert told[2] == os.strerror(errno.ENOSPC).encode()


def test_a_log_that_cannot_be_made_is_an_error_of_the_user(folder: Path) -> None:
    from ptools.errors import PtoolsError
    from ptools.launcher.output import Output

    with pytest.raises(PtoolsError, match="cannot write the log"):
        Output(folder / "missing", 1, "first")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_fine(command: Command, folder: Path, closed: str) -> None:
    script = 'say("out\\n")\nsay("err\\n", 2)'
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(script, 2, "first")]
    subprocess.run(line, check=True, timeout=60)
    for rank in range(2):
        assert (folder / f"rank_{rank}.log").read_bytes() == b"out\nerr\n"


def test_a_process_left_behind_does_not_hold_up_the_end(launch: Launch, folder: Path) -> None:
    start = time.monotonic()
    done = launch(
        "import subprocess\n"
        'left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
        '(folder / f"left_{rank}").write_text(str(left.pid))\n'
        'say("done\\n")'
    )
    for rank in range(2):
        os.kill(int((folder / f"left_{rank}").read_text()), signal.SIGKILL)
    assert done.stdout == b"done\n"
    assert time.monotonic() - start < 30


def test_streams_without_a_descriptor_are_written_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ptools.launcher.output import Output

    output = Output(folder, 1, "first")
    out, err = output.ends(0)
    os.write(out, "naïve\n".encode())
    os.write(err, b"warning\n")
    output.started(0)
    output.drain()
    assert capsys.readouterr() == ("naïve\n", "warning\n")
    assert abs(output.last_ns - time.time_ns()) < 60e9
