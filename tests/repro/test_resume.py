"""Whether a resumed run continues, told of scripts that say in their first line what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

pytest.importorskip("torch")
from ptools.errors import PtoolsError, UsageError
from ptools.repro.resume.engine import resume_script
from ptools.repro.resume.report import ResumeReport, verdict

SCRIPTS = Path(__file__).parent / "resume"
Resume = Callable[..., ResumeReport]


@pytest.fixture
def resume(folder: Path, warm: Warm) -> Resume:
    """Resume one of the scripts, in an empty folder."""

    def run(name: str, at: int = 8, more: str = "--resume last.pt", **rest: Any) -> ResumeReport:
        if not Path(f"{name}.py").exists():
            shutil.copy(SCRIPTS / f"{name}.py", folder)
        return resume_script(f"{name}.py", at=at, more=more.split(), runner=warm, **rest)

    return run


CASES = {
    "scheduler": ["the learning rate scheduler"],
    "optimizer": ["the optimizer's state"],
    "generator": ["the order of the samples", "torch's generator"],
    "dropout": ["torch's generator"],
    "order": ["the order of the samples"],
    "buffers": ["buffers"],
    "average": ["a model that no optimizer holds"],
    "average_of_tensors": ["tensors that the program keeps"],
    "head": ["parameters"],
    "parameters": ["parameters"],
    "anew": ["everything: it began anew"],
    "settings": ["settings of the optimizer"],
    "scaler": ["the gradient scaler"],
    "accumulated": ["gradients accumulated before the save"],
    "python_generator": ["values in the batch", "Python's random generator"],
    "numpy_generator": ["values in the batch", "NumPy's global generator"],
    "drawn_data": ["inputs that are drawn at random", "torch's generator"],
    "position": ["the position in the data"],
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_not_restored_is_named_and_nothing_else(name: str, resume: Resume) -> None:
    report = resume(name)
    lost = [one.what for one in report.lost]
    assert report.exit_code == 3
    assert len(lost) == len(CASES[name]), lost
    assert all(map(str.startswith, lost, CASES[name])), lost


@pytest.mark.parametrize("name", ["right_each_epoch", "right_each_step"])
def test_a_script_that_saves_all_continues_bit_for_bit(name: str, resume: Resume) -> None:
    report = resume(name)
    assert report.exit_code == 0, report
    assert verdict(report) == "continues bit for bit from step 8 for 8 steps"


def test_a_resume_from_an_older_checkpoint_is_compared_from_there(resume: Resume) -> None:
    report = resume("right_each_epoch", at=10)
    assert verdict(report) == "continues bit for bit from step 8 for 12 steps"
    assert "2 steps before the kill" in report.notes[0]


def test_what_a_resume_needs_is_told_with_the_first_difference(resume: Resume) -> None:
    report = resume("momentum")
    assert [one.what for one in report.lost] == ["the optimizer's state"]
    assert "momentum_buffer of Sequential.0.weight is missing" in report.lost[0].facts[0]
    assert "optimizer.state_dict()" in report.lost[0].save
    assert (
        report.where is not None
        and report.where.source == "loss = model(data[step]).square().mean()"
    )
    assert report.start == 8


@pytest.mark.parametrize(("name", "went_on"), [("off_by_one", 9), ("counter", 7)])
def test_counters_of_the_script_are_told_when_the_data_differ(
    name: str, went_on: int, resume: Resume
) -> None:
    report = resume(name)
    assert report.start == 8
    assert report.facts == (f"step is 8 in run A and {went_on} in the resumed run",)
    assert [one.what for one in report.lost] == ["the position in the data"]
    assert f"data of step {went_on}" in report.lost[0].facts[0]


def test_a_checkpoint_saved_before_its_step(resume: Resume) -> None:
    report = resume("before_the_step")
    assert report.start == 7
    assert [one.what for one in report.lost] == ["the position in the data"]
    assert "data of step 8" in report.lost[0].facts[0]


def test_the_checkpoints_of_the_runs_are_not_left(resume: Resume, folder: Path) -> None:
    (folder / "other.pt").write_text("the user's own")
    resume("right_each_epoch")
    assert sorted(one.name for one in folder.iterdir()) == ["other.pt", "right_each_epoch.py"]


def test_a_generator_of_which_nothing_comes_is_a_note(resume: Resume, folder: Path) -> None:
    text = (SCRIPTS / "right_each_step.py").read_text()
    text = text.replace("step = 0\n", "step = 0\nimport random\nrandom.seed(step)\n")
    text = text.replace("    step += 1\n", "    step += 1\n    random.random()\n")
    (folder / "noise.py").write_text(text)
    report = resume("noise")
    assert report.exit_code == 0
    assert any("Python's random generator" in note for note in report.notes)


def test_a_resumed_run_that_fails_says_how(resume: Resume) -> None:
    report = resume("fails")
    assert report.exit_code == 3
    assert verdict(report) == "the resumed run fails: KeyError: 'net'"
    assert "KeyError: 'net'" in report.facts[-1]


def test_arguments_that_the_script_does_not_take(resume: Resume) -> None:
    with pytest.raises(UsageError, match=r"exit code 2: .*unrecognized arguments: --continue"):
        resume("refuses", more="--continue")


def test_a_script_that_ends_before_the_step(resume: Resume) -> None:
    with pytest.raises(PtoolsError, match="makes 20 steps: nothing comes after step 20"):
        resume("right_each_epoch", at=20)


def test_a_script_that_does_not_repeat_is_not_resumed(resume: Resume, folder: Path) -> None:
    text = (SCRIPTS / "right_each_step.py").read_text()
    (folder / "unseeded.py").write_text(text.replace("torch.manual_seed(0)", "torch.seed()"))
    with pytest.raises(PtoolsError, match="does not repeat: two runs part at step 0"):
        resume("unseeded")


def test_a_script_that_fails_by_itself(resume: Resume, write: Callable[[str, str], Path]) -> None:
    write("broken.py", "import torch\nraise ValueError('broken')\n")
    with pytest.raises(PtoolsError, match="the script itself fails: ValueError: broken"):
        resume("broken")


def test_a_model_may_be_tried_before_its_checkpoint_is_loaded(resume: Resume, folder: Path) -> None:
    text = (SCRIPTS / "right_each_step.py").read_text()
    (folder / "tried.py").write_text(text.replace("step = 0\n", "step = 0\nmodel(data[0])\n"))
    assert resume("tried").exit_code == 0


def test_an_average_is_found_within_objects_of_the_script(resume: Resume, folder: Path) -> None:
    text = (SCRIPTS / "average_of_tensors.py").read_text()
    held = "from dataclasses import dataclass\n@dataclass\nclass Held:\n    tensors: dict\n\n"
    text = text.replace("average = {", f"{held}average = Held({{").replace("}\nfor", "})\nfor")
    (folder / "held.py").write_text(text.replace("average[name]", "average.tensors[name]"))
    assert resume("held").lost[0].facts[0].startswith("average.tensors['0.weight'] differs")


def test_a_resumed_run_that_takes_the_training_to_be_over(resume: Resume, folder: Path) -> None:
    text = (SCRIPTS / "right_each_step.py").read_text()
    (folder / "over.py").write_text(text.replace('step = saved["step"]', "step = 30"))
    report = resume("over")
    assert (report.exit_code, verdict(report)) == (3, "the resumed run makes no step")


def test_a_resumed_run_that_goes_on_for_longer(resume: Resume, folder: Path) -> None:
    text = (SCRIPTS / "right_each_step.py").read_text()
    text = text.replace("    step =", "    done = step =").replace("step = 0", "done = step = 0")
    text = text.replace("while step < 30", "while step - done < 10").replace("(40,", "(99,")
    (folder / "longer.py").write_text(text)
    report = resume("longer", at=6)
    assert report.exit_code == 3
    assert report.parts == "run A is over at step 10, and the resumed run goes on"


def test_a_loaded_checkpoint_that_stays_in_a_variable_is_no_state(
    resume: Resume, folder: Path
) -> None:
    text = (SCRIPTS / "right_each_epoch.py").read_text()
    text = text.replace("    model.load", '    weights = saved["model"]\n    model.load')
    text = text.replace("    state =", "    weights = model.state_dict()\n    state =")
    (folder / "loaded.py").write_text(text)
    assert resume("loaded").exit_code == 0
