"""Several processes on one screen: whole lines, each with its rank."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

Launch = Callable[..., subprocess.CompletedProcess[bytes]]
Command = Callable[[str, int, str], list[str]]


def test_show_all_puts_the_rank_before_whole_lines_only(launch: Launch, folder: Path) -> None:
    done = launch(
        r"""
for number in range(2000):
    say(f"rank {rank} ")
    say(f"line {number}\n")
say(f"last of {rank}")
""",
        procs=3,
        show="all",
    )
    lines = done.stdout.splitlines(keepends=True)
    assert len(lines) == 6003
    for rank in range(3):
        own = [line[4:] for line in lines if line.startswith(b"[%d] " % rank)]
        log = (folder / f"rank_{rank}.log").read_bytes()
        assert b"".join(own) == log + b"\n"


def test_show_all_keeps_a_progress_bar_a_bar(launch: Launch) -> None:
    done = launch(
        r"""
for percent in (10, 20):
    say(f"\r{percent}%", 2)
say("\rdone\nwindows\r\nbytes \xff".encode("latin-1") + b"\n", 2)
""",
        procs=1,
        show="all",
    )
    assert done.stderr == b"[0] 10%\r[0] 20%\r[0] done\n[0] windows\r\n[0] bytes \xff\n"


def test_a_character_or_a_line_that_comes_in_pieces_is_not_cut(launch: Launch) -> None:
    done = launch(
        r"""
if rank == 0:
    say(b"caf\xc3")
    time.sleep(0.8)  # it is shown by now, but for the half character
    say(b"\xa9 au ")
    turn("half")
    wait("other")
    time.sleep(0.1)
    say("lait\r")
    time.sleep(0.02)  # it would be shown after half a second, and a busy machine may add to it
    say("\n")
else:
    wait("half")
    say("other\n")
    turn("other")
""",
        show="all",
    )
    assert done.stdout == "[0] caf\n[1] other\n[0] café au lait\r\n".encode()


def test_an_unfinished_line_is_shown_after_a_while_and_goes_on_where_it_was(
    command: Command, folder: Path
) -> None:
    script = 'say("working ...")\nwait("seen")\nsay(" done\\n")'
    launcher = subprocess.Popen(command(script, 1, "all"), stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    assert os.read(launcher.stdout.fileno(), 100) == b"[0] working ..."
    (folder / "seen").touch()
    assert launcher.communicate(timeout=60)[0] == b" done\n"


def test_on_a_terminal_a_line_of_another_rank_erases_a_longer_bar(
    on_terminal: Callable[..., bytes],
) -> None:
    seen = on_terminal(
        r"""
if rank == 0:
    say(f"{os.get_terminal_size(1).columns}\n")
    say("\ra long progress bar\r")
    time.sleep(0.8)
    turn("bar")
    wait("short")
    time.sleep(0.1)
else:
    wait("bar")
    say("short\n")
    turn("short")
""",
        procs=2,
        show="all",
    )
    assert seen == b"[0] 46\r\n[0] a long progress bar\r\x1b[K[1] short\r\n"


def test_a_failing_rank_is_shown_from_its_failure_on_with_a_few_lines_before(
    launch: Launch,
) -> None:
    done = launch(r"""
say("first\n")
if rank == 1:
    for number in range(100):
        say(f"line {number}\n", 2)
    turn("printed")
    time.sleep(0.1)
    (folder / ".new").write_text('{"time_ns": %d}' % time.time_ns())
    say("".join(f"traceback {number}\n" for number in range(40)), 2)
    (folder / ".new").rename(folder / "failure_1.json")
    time.sleep(0.3)
    say("at the ")
    time.sleep(0.1)
    say("end\nunfinished")
""")
    assert done.stdout == b"first\n"
    lines = [f"line {number}" for number in range(80, 100)]
    lines += [f"traceback {number}" for number in range(40)]
    lines += ["at the end", "unfinished"]
    assert done.stderr.decode().splitlines() == [f"[1] {line}" for line in lines]


def test_a_rank_that_fails_without_a_word_is_shown_by_its_last_lines(launch: Launch) -> None:
    done = launch(r"""
if rank == 1:
    say("x" * 200_000 + "\n" + "\n".join(str(number) for number in range(50)))
    os._exit(3)
""")
    last = done.stderr.decode().split()
    assert last == [word for number in range(30, 50) for word in ("[1]", str(number))]
