"""`ptools init` as it is typed."""

import runpy
import shutil
from pathlib import Path

import pytest

from ptools.cli import main

Capture = pytest.CaptureFixture[str]
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_it_says_what_to_type_next(folder: Path, capsys: Capture) -> None:
    shutil.copytree(EXAMPLES / "shapes", folder / "examples/shapes")
    assert main(["init", "train.py"]) == 0
    out, err = capsys.readouterr()
    first, *commands = out.splitlines()
    assert first == "train.py is written; to go on:"
    assert [line.split("  ")[1] for line in commands] == [
        "python train.py",
        "ptools launch train.py",
        "python train.py --resume",
        "tensorboard --logdir runs",
    ]
    assert not err


def test_the_script_calls_itself_by_its_name_and_trains_on_what_was_given(folder: Path) -> None:
    (folder / "my jobs").mkdir()
    data = 'it\'s "my" data\\é'
    assert main(["init", "my jobs/first-try.py", "--data", data]) == 0
    script = folder / "my jobs/first-try.py"
    names = runpy.run_path(str(script), run_name="read")
    assert names["DATA"] == data
    assert "python first-try.py --resume" in names["__doc__"]
    assert "train.py" not in script.read_text()


def test_data_that_is_not_there_is_said_and_no_error(folder: Path, capsys: Capture) -> None:
    assert main(["init", "train.py", "--data", "photos"]) == 0
    assert "there is no photos here yet" in capsys.readouterr().err


def test_a_file_that_exists_is_replaced_only_when_asked(folder: Path, capsys: Capture) -> None:
    script = folder / "train.py"
    script.write_text("mine")
    assert main(["init", "train.py"]) == 2
    assert script.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["init", "train.py", "--force"]) == 0
    assert "argparse" in script.read_text()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train.txt", "train.txt cannot name a script"),
        ("train", "train cannot name a script"),
        (".py", ".py cannot name a script"),
        ('a"""b.py', "cannot name a script"),
        (".", "is a folder"),
        ("folder.py", "is a folder"),
        ("no/where.py", "there is no folder"),
    ],
)
def test_what_cannot_be_a_script_is_refused(
    name: str, told: str, folder: Path, capsys: Capture
) -> None:
    (folder / "folder.py").mkdir()
    assert main(["init", name]) == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["folder.py"]
