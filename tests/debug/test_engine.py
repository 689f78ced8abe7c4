"""Which runs follow a first one, and what is made of what they found."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ptools.debug.engine import debug_script
from ptools.debug.findings import Finding, Table
from ptools.debug.job import VARIABLE, Job, Outcome, write_outcome
from ptools.debug.render import verdict
from ptools.program.places import Place
from ptools.program.process import Ended, Runner

Write = Callable[[str, str], Path]
NOTHING = Outcome(
    rank=0,
    findings=(),
    notes=(),
    tables=(),
    ticks=9,
    good_until=6,
    steps=8,
    watched=True,
    asked=False,
    ended=True,
    stopped=False,
    errors=(),
)
SEEN = Finding("nonfinite-loss", "the loss is nan", step=7, tick=7)
MADE = Finding(
    "nan", "sqrt made NaN", (("made", Place("/a.py", 3, "f")),), step=7, tick=7, op="aten::sqrt"
)
INPLACE = "RuntimeError: one of the variables ... has been modified by an inplace operation: [...]"
NO_GRAPH = "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn"


class Runs:
    """Stands for the program: what each of its runs finds, and how it ends."""

    def __init__(self, *runs: tuple[Sequence[Outcome], Ended]) -> None:
        self.runs = list(runs)
        self.jobs: list[Job] = []
        self.quiet: list[bool] = []
        self.variables: list[Mapping[str, str]] = []

    def __call__(self, words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> Ended:
        self.jobs.append(Job(**json.loads(Path(variables[VARIABLE]).read_text())))
        self.quiet.append(quiet)
        self.variables.append(variables)
        outcomes, ended = self.runs.pop(0)
        for outcome in outcomes:
            write_outcome(self.jobs[-1].folder, outcome.rank, asdict(outcome))
        return ended


def found(*findings: Finding, **more: Any) -> tuple[list[Outcome], Ended]:
    return [replace(NOTHING, findings=findings, stopped=bool(findings), **more)], Ended(3)


@pytest.fixture
def script(write: Write) -> str:
    return str(write("train.py", ""))


def test_nothing_seen_is_no_second_run(script: str) -> None:
    runs = Runs(([NOTHING], Ended(0)))
    report = debug_script(script, runner=runs)
    assert (report.exit_code, len(report.passes)) == (0, 1)
    assert verdict(report) == "nothing found in 8 steps and 9 backward calls (mode watch)"


def test_what_was_seen_is_traced_from_shortly_before(script: str) -> None:
    said: list[str] = []
    runs = Runs(found(SEEN), found(MADE))
    report = debug_script(script, seed=5, runner=runs, say=said.append)
    first, second = runs.jobs
    assert (first.mode, first.start, first.seed) == ("watch", 0, 5)
    assert (second.mode, second.start, second.seed, second.again) == ("nan", 5, 5, True)
    assert runs.quiet == [False, True]
    assert report.findings == (MADE,)
    assert report.exit_code == 3
    (text,) = said
    assert text.startswith("the loss is nan at step 7 (after 0.0 s): running again")
    assert verdict(report) == "sqrt made NaN at /a.py:3"


def test_a_value_lost_earlier_is_looked_for_from_the_start(script: str) -> None:
    before = Finding("nan-before", "a parameter holds NaN already", step=5, tick=5)
    runs = Runs(found(SEEN), found(before), found(MADE))
    report = debug_script(script, runner=runs)
    assert [job.start for job in runs.jobs] == [0, 5, 0]
    assert report.findings == (MADE,)


@pytest.mark.parametrize(
    ("errors", "mode"),
    [
        ([INPLACE], "inplace"),
        (["SystemExit: 1", INPLACE], "inplace"),
        (["RuntimeError: Function 'SqrtBackward0' returned nan values in its 0th output."], "nan"),
        ([NO_GRAPH], "autograd"),
    ],
)
def test_what_torch_says_tells_the_mode(errors: list[str], mode: str, script: str) -> None:
    failed = [replace(NOTHING, errors=tuple(errors))]
    runs = Runs((failed, Ended(1)), found(MADE))
    assert debug_script(script, runner=runs).exit_code == 3
    assert [job.mode for job in runs.jobs] == ["watch", mode]


def test_another_failure_is_no_second_run(script: str) -> None:
    runs = Runs(([replace(NOTHING, errors=("ValueError: no",))], Ended(1)))
    report = debug_script(script, runner=runs)
    assert report.exit_code == 1
    assert verdict(report).endswith("(mode watch); the program's exit code is 1")


def test_what_does_not_come_again_is_told_as_it_was_seen(script: str) -> None:
    report = debug_script(script, runner=Runs(found(SEEN), ([NOTHING], Ended(0))))
    assert report.findings == (SEEN,)
    assert report.exit_code == 3
    assert "ptools repro" in report.notes[-1]


def test_a_second_run_that_fails_otherwise_shows_how(script: str) -> None:
    other = [replace(NOTHING, errors=("FileExistsError: out",))]
    output = "\n".join([*map(str, range(20)), "FileExistsError: out"])
    report = debug_script(script, runner=Runs(found(SEEN), (other, Ended(1, output=output))))
    assert report.notes[0] == "the second run failed in another way, and ended with:"
    assert report.notes[-1] == "FileExistsError: out"
    assert len(report.notes) < 12


@pytest.mark.parametrize("code", [130, 0])
def test_ctrl_c_ends_it_with_what_was_found(code: int, script: str) -> None:
    outcomes, _ = found(SEEN)
    runs = Runs((outcomes, Ended(code, interrupted=True)))
    report = debug_script(script, runner=runs)
    assert report.findings == (SEEN,)
    assert report.exit_code == (code or 3)


def test_ctrl_c_in_the_second_run(script: str) -> None:
    runs = Runs(found(SEEN), ([NOTHING], Ended(130, interrupted=True)))
    report = debug_script(script, runner=runs)
    assert (report.exit_code, report.findings) == (130, (SEEN,))
    assert "the second run was interrupted" in report.notes


def test_a_program_that_asks_a_person_is_not_run_in_silence(script: str) -> None:
    said: list[str] = []
    runs = Runs(found(SEEN, asked=True), found(MADE))
    debug_script(script, runner=runs, say=said.append)
    assert runs.quiet == [False, False]
    assert "answer as before" in said[0]


def test_a_program_that_deletes_itself_is_not_run_again(script: str) -> None:
    runs = Runs(found(SEEN))

    def run(words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> Ended:
        Path(script).unlink()
        return runs(words, variables, quiet)

    report = debug_script(script, runner=run)
    assert report.findings == (SEEN,)
    assert "cannot be run again" in report.notes[0]


def test_a_step_that_is_named_is_traced_at_once(script: str) -> None:
    runs = Runs(found(MADE))
    debug_script(script, at_step=4, keep_going=True, runner=runs)
    (job,) = runs.jobs
    assert (job.mode, job.at_step, job.keep_going, job.again) == ("nan", 4, True, False)


def test_the_environment_of_a_run(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(([NOTHING], Ended(0)), ([NOTHING], Ended(0)))
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    debug_script(script, runner=runs)
    monkeypatch.setenv("PYTHONHASHSEED", "17")
    debug_script(script, runner=runs)
    assert [one["PYTHONHASHSEED"] for one in runs.variables] == ["0", "17"]
    assert runs.variables[0]["TORCHDYNAMO_DISABLE"] == "1"


def rank(number: int, finding: Finding) -> Outcome:
    return replace(NOTHING, rank=number, findings=(finding,), stopped=True)


def test_of_several_ranks_the_first_has_it(script: str) -> None:
    later = replace(MADE, tick=9, step=9, places=(("made", Place("/a.py", 8, "f")),))
    runs = Runs(([rank(0, later), rank(1, MADE)], Ended(3)))
    report = debug_script(script, mode="nan", runner=runs)
    assert [one.rank for one in report.findings] == [1, 0]
    assert verdict(report) == "sqrt made NaN on rank 1 at /a.py:3, and 1 more finding"


def test_a_rank_that_received_it_is_not_the_maker(script: str) -> None:
    received = replace(MADE, places=(("read", Place("/a.py", 9, "f")),), op="aten::add")
    runs = Runs(([rank(0, received), rank(1, MADE)], Ended(3)))
    (finding,) = debug_script(script, mode="nan", runner=runs).findings
    assert finding.rank == 1
    assert finding.facts == ("it came to rank 0 too",)


def test_what_all_ranks_do_alike_is_told_once(script: str) -> None:
    runs = Runs(([rank(0, MADE), rank(1, MADE), rank(2, MADE)], Ended(3)))
    (finding,) = debug_script(script, mode="nan", runner=runs).findings
    assert (finding.rank, finding.facts) == (0, ("the same on rank 1, 2",))


def test_json_holds_no_nan(script: str) -> None:
    table = Table("gradients", ("module", "norm"), (("net", float("nan")),))
    report = debug_script(script, runner=Runs(found(MADE, tables=(table,))), rerun=False)
    told = report.to_dict()
    json.dumps(told, allow_nan=False)
    assert told["tables"] == [{"title": "gradients", "rows": [{"module": "net", "norm": None}]}]


def test_a_program_that_catches_everything_and_seeds_nothing(write: Write, warm: Runner) -> None:
    script = write(
        "train.py",
        "import random, numpy, torch\n"
        "net = torch.compile(torch.nn.Linear(2, 1))\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "bad = random.randrange(3, 9) + numpy.random.randint(3) + int(torch.randint(3, ()))\n"
        "for step in range(15):\n"
        "    try:\n"
        "        x = torch.rand(2) if step != bad else torch.zeros(2)\n"
        "        net((x / x.sum())).sum().backward()\n"
        "        optimizer.step()\n"
        "    except BaseException:\n"
        "        raise SystemExit('caught') from None\n",
    )
    report = debug_script(str(script.absolute()), runner=warm)
    (finding,) = report.findings
    where = finding.where
    assert where is not None
    assert (where.line, [one.mode for one in report.passes]) == (8, ["watch", "nan"])
    assert any("torch.compile" in note for note in report.notes)


def test_probabilities_that_are_refused_are_traced_to_their_line(
    write: Write, warm: Runner
) -> None:
    script = write(
        "train.py",
        "import torch\n"
        "weight = torch.ones(3, requires_grad=True)\n"
        "for step in range(5):\n"
        "    scale = weight.new_tensor(step - 3.0)\n"
        "    scores = (weight * scale).relu() / (weight * scale).relu().sum()\n"
        "    torch.distributions.Categorical(scores if step > 2 else weight).sample()\n"
        "    weight.sum().backward()\n",
    )
    report = debug_script(str(script.absolute()), runner=warm)
    (finding,) = report.findings
    assert finding.where is not None
    assert (finding.where.line, report.exit_code) == (5, 3)


LEAF = "RuntimeError: a leaf Variable that requires grad is being used in an in-place operation."


def test_an_error_whose_line_torch_tells_is_advised_on_and_not_run_again(script: str) -> None:
    runs = Runs(([replace(NOTHING, errors=(LEAF,))], Ended(1)))
    report = debug_script(script, runner=runs)
    assert (len(report.passes), report.exit_code) == (1, 1)
    assert any("torch.no_grad()" in note for note in report.notes)


def test_a_second_run_that_comes_to_the_same_error_is_not_said_to_differ(script: str) -> None:
    failed = [replace(NOTHING, errors=(INPLACE,))], Ended(1)
    report = debug_script(script, runner=Runs(failed, failed))
    assert any("the same error" in note for note in report.notes)


def test_the_programs_own_anomaly_mode_has_its_say(
    write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    write(
        "train.py",
        "import torch\n"
        "torch.autograd.set_detect_anomaly(True)\n"
        "weight = torch.zeros(2, requires_grad=True)\n"
        "optimizer = torch.optim.SGD([weight], lr=0.1)\n"
        "distance = (weight * 0).sqrt()\n"
        "distance.sum().backward()\n"
        "optimizer.step()\n",
    )
    (finding,) = debug_script("train.py").findings
    err = capfd.readouterr().err
    assert err.count("Traceback (most recent call last)") == 1
    assert "returned nan values in its 0th output" in err
    assert finding.where is not None
    assert finding.where.line == 5


def test_without_a_second_run_the_mode_that_tells_the_line_is_named(script: str) -> None:
    notes = debug_script(script, runner=Runs(found(SEEN)), rerun=False, seed=7).notes
    assert any("--mode nan --seed 7" in note for note in notes)
