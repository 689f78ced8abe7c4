"""Each run begins from the same files, and in the end those of the first run are there."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from ptools.repro.outputs.moves import move
from ptools.repro.outputs.outputs import Outputs

BOOT = """
import sys, runpy
from pathlib import Path
from ptools.repro.outputs import writes
{first}
writes.watch_writes(Path(sys.argv[1]))
runpy.run_path(sys.argv[2], run_name="__main__")
"""
HOME = str(Path(__file__).parents[2])


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the program starts, with nothing beside it, then or afterwards."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", HOME)
    yield folder
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path_factory.mktemp("program") / "train.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def run(place: Path, program: Path, first: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", BOOT.format(first=first), str(place), str(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def tree(folder: Path) -> dict[str, str]:
    """What lies below a folder: the text of each file, the target of each link."""
    return {
        str(path.relative_to(folder)): (
            f"-> {path.readlink()}"
            if path.is_symlink()
            else "a folder"
            if path.is_dir()
            else path.read_text(encoding="utf-8")
        )
        for path in folder.rglob("*")
    }


def compare(work: Path, program: Path) -> Outputs:
    """Three runs: each begins as a plain one does, and the folder ends as after a plain one."""
    before = tree(work)
    plain = Path(shutil.copytree(work, program.parent / "plain", symlinks=True))
    done = subprocess.run([sys.executable, program], cwd=plain, capture_output=True, text=True)
    outputs = Outputs()
    for _ in range(3):
        assert run(outputs.before(), program) == done.stdout
        outputs.after_run()
        assert tree(work) == before
    outputs.close()
    assert tree(work) == tree(plain)
    return outputs


PROGRAMS = {
    "appends to a log": """
        with open("log.txt", "a") as log:
            log.write("one more line\\n")
        print(open("log.txt").read())
        """,
    "overwrites a file": """
        from pathlib import Path
        print(Path("log.txt").read_text())
        Path("log.txt").write_text("new")
        """,
    "makes nested folders": """
        import os
        os.makedirs("runs/new/deep", exist_ok=True)
        print(sorted(os.listdir("runs")))
        open("runs/new/deep/a.txt", "w").write("a")
        open("runs/new/b.txt", "w").write("b")
        open("runs/c.txt", "w").write("c")
        """,
    "removes a file and a folder": """
        import os, shutil
        print(sorted(os.listdir(".")))
        os.remove("log.txt")
        shutil.rmtree("runs")
        """,
    "removes and makes again": """
        import os, shutil
        print(sorted(os.listdir("runs")))
        shutil.rmtree("runs")
        os.makedirs("runs")
        open("runs/new.txt", "w").write("new")
        os.remove("log.txt")
        os.mkdir("log.txt")
        """,
    "saves atomically": """
        import os
        print(open("log.txt").read())
        for step in range(3):
            open("log.tmp", "w").write(f"step {step}")
            os.replace("log.tmp", "log.txt")
        """,
    "renames a file and a folder": """
        import os
        print(sorted(os.listdir(".")))
        os.rename("log.txt", "log.bak")
        open("log.bak", "a").write("after")
        os.rename("runs", "old_runs")
        open("old_runs/1.txt", "w").write("after")
        """,
    "writes through links": """
        import os
        print(open("latest").read(), os.path.lexists("next"))
        open("latest", "a").write("through the link")
        os.symlink("runs", "next")
        open("next/2.txt", "w").write("2")
        os.remove("to_folder")
        os.symlink("log.txt", "to_folder")
        """,
    "changes the folder": """
        import os
        os.mkdir("made"), os.chdir("made")
        open("here.txt", "w").write("1")
        open("../log.txt", "a").write("1")
        os.chdir("/")
        """,
    "writes in a forked process": """
        import multiprocessing
        def write(_):
            open("log.txt", "a").write("1")
            open("of_worker.txt", "w").write("1")
        print(open("log.txt").read())
        with multiprocessing.get_context("fork").Pool(1) as pool:
            pool.map(write, [0, 1])
        open("of_worker.txt", "a").write("2")
        """,
    "writes to a database": """
        import sqlite3
        with sqlite3.connect("study.db") as base:
            base.execute("create table trials (x)")
        base.close()
        import os
        os.remove("study.db")
        """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_run_begins_anew_and_the_first_is_left(
    name: str, work: Path, script: Callable[[str], Path]
) -> None:
    (work / "log.txt").write_text("the user's own\n")
    (work / "runs" / "old").mkdir(parents=True)
    (work / "runs" / "1.txt").write_text("1")
    (work / "runs" / "old" / "2.txt").write_text("2")
    (work / "latest").symlink_to("log.txt")
    (work / "to_folder").symlink_to("runs")
    outputs = compare(work, script(PROGRAMS[name]))
    assert not [note for note in outputs.notes if "each run wrote" not in note]


def test_what_was_written_is_told(work: Path, script: Callable[[str], Path]) -> None:
    outputs = compare(work, script("for i in range(5): open(f'{i}.txt', 'w').write('x')"))
    assert outputs.notes == [
        "each run wrote 5 files (0.txt, 1.txt, 2.txt, ...): put aside between the runs; "
        "those of run 1 are left"
    ]


def test_a_program_that_writes_nothing_leaves_nothing_to_tell(
    work: Path, script: Callable[[str], Path]
) -> None:
    (work / "lock").write_text("")
    assert compare(work, script("print(open('lock', 'a').tell())")).notes == []


def test_what_other_programs_write_is_left_and_named(
    work: Path, script: Callable[[str], Path]
) -> None:
    (work / "theirs.txt").write_text("1")
    program = script("import os; os.system('echo 2 >> theirs.txt; echo 3 > new.txt')")
    outputs = Outputs()
    run(outputs.before(), program)
    outputs.after_run()
    outputs.close()
    assert tree(work) == {"theirs.txt": "12\n", "new.txt": "3\n"}
    assert sorted(outputs.notes) == [
        "changed during run 1, unseen by us, and not put back: theirs.txt",
        "written by another process or a library during run 1, and left: new.txt",
    ]


def test_a_file_too_large_to_copy_is_named(work: Path, script: Callable[[str], Path]) -> None:
    (work / "data.bin").write_text("large")
    outputs = Outputs()
    run(outputs.before(), script("open('data.bin', 'a').write('r')"), "writes.LARGEST = 4")
    outputs.after_run()
    outputs.close()
    assert tree(work) == {"data.bin": "larger"}
    assert outputs.notes == [
        "changed by run 1 and could not be put back (it is too large to be copied): data.bin"
    ]


def test_a_large_file_that_is_replaced_needs_no_copy(
    work: Path, script: Callable[[str], Path]
) -> None:
    (work / "last.pt").write_text("large")
    program = script("import os; open('new', 'w').write('new'); os.replace('new', 'last.pt')")
    outputs = Outputs()
    run(outputs.before(), program, "writes.LARGEST = 0")
    outputs.after_run()
    assert tree(work) == {"last.pt": "large"}
    outputs.close()
    assert tree(work) == {"last.pt": "new"}


def test_what_is_written_elsewhere_is_left_and_named(
    work: Path, script: Callable[[str], Path]
) -> None:
    program = script("open(__file__ + '.log', 'w').write('1')")
    outputs = Outputs()
    run(outputs.before(), program)
    outputs.after_run()
    outputs.close()
    (note,) = outputs.notes
    assert note.startswith("not put aside, since it is outside the current folder")
    assert note.endswith(f": {program}.log")
    assert Path(f"{program}.log").read_text() == "1"


def test_traces_in_the_current_folder_stay_where_they_are(
    work: Path, script: Callable[[str], Path]
) -> None:
    """As when the current folder is /tmp."""
    (work / "ptools-repro-1").mkdir()
    program = script("open('ptools-repro-1/trace', 'w').write('1'); open('a', 'w').write('1')")
    outputs = Outputs()
    run(outputs.before(), program)
    outputs.after_run()
    assert tree(work) == {"ptools-repro-1": "a folder", "ptools-repro-1/trace": "1"}
    outputs.close()
    assert len(outputs.notes) == 1


def test_what_a_killed_comparison_left_is_named_and_not_touched(
    work: Path, script: Callable[[str], Path]
) -> None:
    killed = Outputs()
    place = killed.before()
    run(place, script("open('log.txt', 'w').write('1')"))
    killed.after_run()
    outputs = Outputs()
    outputs.before()
    outputs.close()
    (note,) = outputs.notes
    assert note.startswith("left of a comparison that was killed")
    assert note.endswith(str(place.parent))
    assert (place / "made" / "log.txt").read_text() == "1"
    killed.close()


def test_a_name_that_another_program_has_taken_is_not_written_over(
    work: Path, script: Callable[[str], Path], tmp_path: Path
) -> None:
    outputs = Outputs()
    run(outputs.before(), script("open('out.txt', 'w').write('of the run')"))
    outputs.after_run()
    (work / "out.txt").write_text("of the user")
    outputs.close()
    assert tree(work) == {"out.txt": "of the user"}
    (scratch,) = (path for path in tmp_path.iterdir() if path != work)
    assert any(str(scratch) in note for note in outputs.notes)
    assert (scratch / "1" / "made" / "out.txt").read_text() == "of the run"
    shutil.rmtree(scratch)


@pytest.mark.parametrize("cut", ["first", "second"])
def test_a_killed_run_loses_nothing(cut: str, work: Path, script: Callable[[str], Path]) -> None:
    (work / "log.txt").write_text("before ")
    whole = script("open('log.txt', 'a').write('whole'); open('out.txt', 'w').write('whole')")
    killed = script("import os; open('log.txt', 'a').write('cut'); os.kill(os.getpid(), 9)")
    outputs = Outputs()
    if cut == "second":
        run(outputs.before(), whole)
        outputs.after_run()
    with pytest.raises(subprocess.CalledProcessError):
        run(outputs.before(), killed)
    outputs.close()
    left = {"log.txt": "before whole", "out.txt": "whole"}
    assert tree(work) == (left if cut == "second" else {"log.txt": "before cut"})


@pytest.mark.parametrize("moment", range(4))
def test_ctrl_c_while_files_are_moved_loses_nothing(
    moment: int,
    work: Path,
    script: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (work / "log.txt").write_text("before ")
    program = script("open('log.txt', 'a').write('1'); open('out.txt', 'w').write('1')")
    moves = []

    def interrupted(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) == moment // 2 + 1 and moment % 2:
            raise KeyboardInterrupt
        move(source, target)
        if len(moves) == moment // 2 + 1:
            raise KeyboardInterrupt

    outputs = Outputs()
    run(outputs.before(), program)
    monkeypatch.setattr("ptools.repro.outputs.outputs.move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outputs.after_run()
    outputs.close()
    assert tree(work) == {"log.txt": "before 1", "out.txt": "1"}


def test_a_full_disk_leaves_the_file_where_it_is_and_says_so(
    work: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(ENOSPC, "No space left on device")

    outputs = Outputs()
    run(outputs.before(), script("open('out.txt', 'w').write('1')"))
    with monkeypatch.context() as patch:
        patch.setattr("ptools.repro.outputs.outputs.move", full)
        outputs.after_run()
    outputs.close()
    assert tree(work) == {"out.txt": "1"}
    assert outputs.notes == ["not put right after run 1 (No space left on device): out.txt"]


@pytest.mark.parametrize("number", [1, 2])
def test_an_original_that_cannot_be_put_back_stays_in_the_scratch_folder(
    number: int,
    work: Path,
    script: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def full(source: Path, target: Path) -> None:
        if source.parts[-3:-1] == (str(number), "kept"):
            raise OSError(ENOSPC, "No space left on device")
        move(source, target)

    (work / "log.txt").write_text("before ")
    program, outputs = script("open('log.txt', 'a').write('1')"), Outputs()
    monkeypatch.setattr("ptools.repro.outputs.outputs.move", full)
    for _ in range(number):
        run(outputs.before(), program)
        outputs.after_run()
    outputs.close()
    assert tree(work) == {"log.txt": "before 1"}
    (scratch,) = (path for path in tmp_path.iterdir() if path != work)
    assert any(f"{scratch} stays" in note for note in outputs.notes)
    (original,) = (scratch / str(number) / "kept").iterdir()
    assert original.read_text() == "before "
    shutil.rmtree(scratch)


def test_a_file_moves_to_another_disk_whole(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one disk")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a")
    (tmp_path / "out" / "link").symlink_to("a")
    target = other / f"ptools-test-{os.getpid()}"
    try:
        move(tmp_path / "out", target)
        assert tree(target) == {"a": "a", "link": "-> a"}
        assert not list(tmp_path.iterdir())
    finally:
        shutil.rmtree(target)


TRAINING = """
    import os, torch
    from torch.utils.data import DataLoader
    torch.set_num_threads(1)

    class Data:
        def __len__(self):
            return 2
        def __getitem__(self, index):
            open("of_worker.txt", "w").write("1")
            return torch.ones(1)

    model, start = torch.nn.Linear(1, 1), 0
    if os.path.exists("out/last.pt"):
        start = torch.load("out/last.pt")["epoch"]
    print("starts at", start)
    os.makedirs("out", exist_ok=True)
    torch.save({"epoch": start + 1, "model": model.state_dict()}, "out/last.pt")
    torch.save(1, "best.pt")
    for batch in DataLoader(Data(), num_workers=1):
        pass
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter("runs/new") as writer:
        writer.add_scalar("loss", 1.0, 0)
    """


def test_a_training_does_not_resume_from_the_checkpoint_of_run_1(
    work: Path, script: Callable[[str], Path]
) -> None:
    (work / "best.pt").write_bytes(b"the user's own")
    program, outputs = script(TRAINING), Outputs()
    for _ in range(2):
        assert run(outputs.before(), program) == "starts at 0\n"
        outputs.after_run()
        assert tree(work) == {"best.pt": "the user's own"}
    outputs.close()
    assert (work / "best.pt").read_bytes()[:2] == b"PK"
    left = sorted(path.name for path in work.rglob("*") if path.is_file())
    assert left[:2] == ["best.pt", "events.out." + left[1].partition("events.out.")[2]]
    assert left[2:] == ["last.pt", "of_worker.txt"]
    assert len(outputs.notes) == 1
