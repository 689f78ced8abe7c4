"""The exit code, the page, and the warnings, from what processes may leave."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptools.launcher import worker
from ptools.launcher.mistakes import warnings
from ptools.launcher.records import Failure, Frame
from ptools.launcher.render import page
from ptools.launcher.report import LaunchResult, make_result
from ptools.launcher.supervisor import Outcome
from ptools.launcher.wire import write
from ptools.launcher.world import World

CLOSED = "[pair.cc:538] Connection closed by peer [127.0.0.1]:{}"
FRAMES = (Frame("train.py", 12, "step", "raise ValueError('bad label')"),)
FIRST = Failure(1, 10_000_000, "ValueError", "bad label", "uncaught", FRAMES, "", 1)
END = {
    "time_ns": 1,
    "exit_code": 0,
    "torch": True,
    "group": True,
    "autocast": False,
    "scaler": False,
    "amp": None,
    "samplers": [],
}


def world(procs: int) -> World:
    return World(procs=procs, master_port=1, run_id="x", threads=1)


def outcome_of(**values: Any) -> Outcome:
    outcome = Outcome()
    vars(outcome).update(values)
    return outcome


def result(folder: Path, *failures: Failure, **outcome: Any) -> LaunchResult:
    codes = outcome.pop("codes", None) or {one.rank: one.exit_code or 1 for one in failures}
    ended = outcome_of(codes=codes, failures=list(failures), **outcome)
    return make_result(ended, world(len(codes)), folder, 12.34, None)


def said(folder: Path, *ends: dict[str, Any], ended_s: tuple[float, ...] = (), **more: Any) -> str:
    """The warnings after processes that noted so."""
    for rank, end in enumerate(ends):
        write("end", rank, {**END, **end}, folder)
    codes = more.get("codes") or dict.fromkeys(range(len(ends)), 0)
    ended_ns = {rank: int(second * 1e9) for rank, second in enumerate(ended_s)}
    outcome = outcome_of(codes=codes, ended_ns=ended_ns)
    return "\n".join(warnings(folder, world(len(ends)), outcome))


def test_a_run_that_ended_well_says_nothing(folder: Path) -> None:
    found = result(folder, codes={0: 0, 1: 0})
    assert (found.exit_code, page(found)) == (0, "")


def test_an_error_that_the_program_dealt_with_is_no_failure(folder: Path) -> None:
    assert result(folder, FIRST, codes={0: 0, 1: 0}).failures == ()


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (FIRST, 1),
        (replace(FIRST, exit_code=134), 134),
        (replace(FIRST, exit_code=143), 1),  # it was slow to end, and was ended
        (replace(FIRST, how="exit", type="SystemExit", message="3", exit_code=137), 3),
        (replace(FIRST, how="killed", type="killed", exit_code=139), 139),
        (replace(FIRST, exit_code=None), 1),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(
    folder: Path, first: Failure, code: int
) -> None:
    lost = Failure(0, 1, "RuntimeError", CLOSED.format(1), "uncaught", exit_code=77)
    assert result(folder, lost, first).exit_code == code


def test_a_launcher_that_was_told_to_end_ends_as_a_shell_says(folder: Path) -> None:
    stopped = Failure(0, 1, "KeyboardInterrupt", "", "uncaught", exit_code=130)
    found = result(folder, stopped, signal=signal.SIGINT, codes={0: 130, 1: -2})
    assert (found.exit_code, found.failures) == (130, ())
    assert page(found).splitlines()[-1] == "stopped by Ctrl-C after 12.3 s: exit code 130"


def test_the_page_names_the_first_failure_then_the_rest_then_the_others(folder: Path) -> None:
    lost = [
        Failure(rank, 20_000_000, "RuntimeError", CLOSED.format(rank), "uncaught", exit_code=1)
        for rank in (0, 2, 3)
    ]
    for rank in (4, 5):
        (folder / f"stack_{rank}.txt").write_text(
            "Current thread 0x01 (most recent call first):\n"
            '  File "/v/site-packages/torch/x.py", line 1 in barrier\n'
            '  File "train.py", line 33 in evaluate\n'
        )
    codes = {0: 1, 1: 1, 2: 1, 3: 1, 4: -15, 5: -15, 6: 0}
    lines = page(result(folder, *lost, FIRST, codes=codes, asked=True)).splitlines()
    assert lines == [
        "first failure: rank 1: ValueError: bad label",
        "  at train.py:12 in step",
        "     raise ValueError('bad label')",
        "then ranks 0, 2-3 (+10 ms): RuntimeError: Connection closed by peer [127.0.0.1]:0",
        "ranks 4-5 were at train.py:33 in evaluate (in barrier)",
        "rank 6 was at its end (exit code 0)",
        f"log: {folder}/rank_1.log",
        f"all logs: {folder}",
        "rank 1 failed after 12.3 s: exit code 1",
    ]


def test_a_process_that_was_still_starting_is_said_to_be(folder: Path) -> None:
    (folder / "stack_0.txt").write_text(
        "Current thread 0x01 (most recent call first):\n"
        '  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed\n'
        f'  File "{worker.__file__}", line 50 in main\n'
    )
    found = result(folder, FIRST, codes={0: -15, 1: 1}, asked=True)
    assert found.where == {0: "not yet in the program"}


def test_a_process_that_died_after_its_program_is_said_to_have(folder: Path) -> None:
    write("end", 0, END, folder)
    write("end", 1, END, folder)
    killed = Failure(0, 1, "killed", "killed by SIGABRT", "killed", exit_code=134)
    found = result(folder, killed, codes={0: -6, 1: -15}, asked=True)
    first, *_ = page(found).splitlines()
    assert first == "first failure: rank 0: killed by SIGABRT as it exited: the program had ended"
    assert found.where == {1: "at its end"}


def test_the_page_stays_short_however_many_fail_differently(folder: Path) -> None:
    others = [
        replace(FIRST, rank=n, time_ns=n, type="x" * n, message="y\n" * 9000) for n in range(2, 60)
    ]
    lines = page(result(folder, FIRST, *others)).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) < 400


def test_what_would_command_a_terminal_is_escaped(folder: Path) -> None:
    text = page(result(folder, replace(FIRST, message="\x1b[2J\x07")))
    assert "\x1b" not in text and "\\x1b[2J\\x07" in text


def test_a_kill_is_said_once_and_with_its_likely_reason(folder: Path) -> None:
    killed = Failure(0, 1, "killed", "killed by SIGKILL", "killed", exit_code=137)
    first, *_ = page(result(folder, killed)).splitlines()
    assert first.startswith("first failure: rank 0: killed by SIGKILL (")


def test_the_result_as_json(folder: Path) -> None:
    found = json.loads(
        json.dumps(result(folder, FIRST, codes={0: -15, 1: 1}, asked=True).to_dict())
    )
    assert found["failures"][0]["frames"][0]["line"] == 12
    assert found["where"] == {"0": "not yet in the program"}


def test_processes_that_never_formed_a_group_are_told_of(folder: Path) -> None:
    alone = {"group": False}
    assert "2 processes ran but no process group" in said(folder, alone, alone)
    assert said(folder, {}, alone) == ""


@pytest.mark.parametrize("ends", [[{"group": False, "torch": False}] * 2, [{"group": False}]])
def test_one_process_or_no_torch_needs_no_group(folder: Path, ends: list[dict[str, Any]]) -> None:
    assert said(folder, *ends) == ""


def test_a_run_that_failed_may_not_have_come_to_its_group(folder: Path) -> None:
    assert said(folder, {"group": False}, {"group": False}, codes={0: 0, 1: 1}) == ""


def test_a_rank_that_left_the_others_is_told_of(folder: Path) -> None:
    assert "rank 1 ended with exit code 0 while others ran on for 8 s" in said(
        folder, {}, {}, ended_s=(10, 2), codes={0: 1, 1: 0}
    )
    assert said(folder, {}, {}, ended_s=(4, 2)) == ""


@pytest.mark.parametrize(
    ("end", "warned"),
    [
        ({"amp": "bf16"}, True),
        ({"amp": "bf16", "autocast": True}, False),
        ({"amp": "off"}, False),
        ({"autocast": True}, False),
    ],
)
def test_a_precision_that_nothing_used_is_told_of(
    folder: Path, end: dict[str, Any], warned: bool
) -> None:
    assert ("--amp bf16" in said(folder, end)) is warned


@pytest.mark.parametrize(
    ("shuffle", "set_epoch", "iterations", "warned"),
    [
        (True, False, 3, True),
        (True, True, 3, False),
        (False, False, 3, False),
        (True, False, 1, False),
    ],
)
def test_a_sampler_that_repeats_its_order_is_told_of(
    folder: Path, shuffle: bool, set_epoch: bool, iterations: int, warned: bool
) -> None:
    sampler = {"shuffle": shuffle, "set_epoch": set_epoch, "iterations": iterations}
    assert ("each of 3 epochs" in said(folder, {"samplers": [sampler]})) is warned


def test_a_consequence_without_its_cause_is_not_passed_off_as_one(folder: Path) -> None:
    lost = Failure(0, 1, "RuntimeError", CLOSED.format(1), "uncaught", exit_code=1)
    assert "none said why" in page(result(folder, lost, codes={0: 1, 1: -15}))
    assert "none said why" not in page(result(folder, lost, FIRST))
