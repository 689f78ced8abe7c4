"""Run B differs in what it is told to, and breaks nothing."""
# ruff: noqa: PTH207, PTH208 (these functions are tested)

import glob
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ptools.repro import perturb

HOME = str(Path(__file__).parents[2])
NAMES = [f"{index}.png" for index in range(9)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONHASHSEED", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shuffled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listings of a folder of files are shuffled."""
    for name in NAMES:
        (folder / name).touch()
    for name in ("listdir", "scandir", "supports_fd"):
        monkeypatch.setattr(os, name, getattr(os, name))
    perturb.install(("fs",))


def in_child(program: str, *names: str) -> str:
    """What a program prints in a process perturbed in `names`."""
    boot = f"from ptools.repro import perturb; perturb.install({names})\n"
    done = subprocess.run(
        [sys.executable, "-c", boot + textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": HOME},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_a_has_a_hash_seed_and_run_b_another() -> None:
    assert perturb.variables((), cores=4) == {"PYTHONHASHSEED": "1"}
    assert perturb.variables(perturb.DEFAULT, cores=4) == {"PYTHONHASHSEED": "2"}


def test_the_users_hash_seed_is_left_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert perturb.variables(("hash",), cores=4) == perturb.variables((), cores=4) == {}
    (note,) = perturb.kept(("hash", "fs"))
    assert note.startswith("PYTHONHASHSEED=0 is set")
    assert perturb.kept(("fs",)) == []


def test_a_random_hash_seed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    assert perturb.variables(("hash",), cores=4) == {"PYTHONHASHSEED": "2"}
    assert perturb.kept(("hash",)) == []


@pytest.mark.parametrize(
    ("set_to", "cores", "other"),
    [(None, 8, "1"), (None, 1, "2"), ("4", 1, "1"), ("1", 8, "2"), ("4,2", 1, "1"), ("", 8, "1")],
)
def test_the_thread_count_is_another(
    set_to: str | None, cores: int, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if set_to is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    assert perturb.variables(("threads",), cores)["OMP_NUM_THREADS"] == other
    assert "MKL_NUM_THREADS" not in perturb.variables(("threads",), cores)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    assert perturb.variables(("threads",), cores)["MKL_NUM_THREADS"] == "2"


@pytest.mark.usefixtures("shuffled")
def test_each_way_to_list_a_folder_has_another_order(folder: Path) -> None:
    listings = [
        os.listdir(),
        os.listdir(str(folder)),
        [os.fsdecode(name) for name in os.listdir(os.fsencode(folder))],
        [entry.name for entry in os.scandir()],
        next(os.walk(folder))[2],
        next(os.fwalk(folder))[2],
        glob.glob("*.png"),
        [path.name for path in folder.iterdir()],
        [path.name for path in folder.rglob("*.png")],
    ]
    plain = subprocess.run(
        [sys.executable, "-c", "import os; print(*os.listdir())"], capture_output=True, text=True
    )
    for names in listings:
        assert sorted(names) == NAMES
        assert names == listings[0] != plain.stdout.split()


@pytest.mark.usefixtures("shuffled")
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_no_order_stays_even_that_which_the_shuffle_would_give(count: int, folder: Path) -> None:
    names = [Path(name) for name in NAMES[:count]]
    shuffled = perturb._shuffled(names, str)
    assert shuffled != names
    again = perturb._shuffled(shuffled, str)
    assert again != shuffled
    assert sorted(again) == names


@pytest.mark.usefixtures("shuffled")
def test_what_has_no_order_is_left(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "one" / "file").touch()
    assert os.listdir("one") == ["file"]


@pytest.mark.usefixtures("shuffled")
def test_scandir_stays_what_it_is(folder: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with os.scandir(folder) as entries:
        first = next(entries)
        assert isinstance(first, os.DirEntry)
        assert first.is_file()
        assert first.path == str(folder / first.name)
    with pytest.raises(StopIteration):
        next(entries)
    unread = os.scandir(folder)
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors
    unread.close()
    opened = os.open(folder, os.O_RDONLY)
    assert len(list(os.scandir(opened))) == len(os.listdir(opened)) == len(NAMES)
    os.close(opened)
    with pytest.raises(FileNotFoundError):
        os.scandir("missing")


@pytest.mark.usefixtures("shuffled")
def test_built_in_functions_stay_so_to_classes_and_to_pickle() -> None:
    class Reader:
        names = os.listdir  # a Python function would become a method

    assert len(Reader().names(".")) == len(NAMES)
    assert pickle.loads(pickle.dumps(os.listdir)) is os.listdir
    assert pickle.loads(pickle.dumps(os.scandir)) is os.scandir


@pytest.mark.usefixtures("shuffled")
def test_global_random_state_is_not_touched() -> None:
    before = random.getstate()
    os.listdir()
    assert random.getstate() == before


def test_a_tree_is_removed_safely(folder: Path) -> None:
    printed = in_child(
        """
        import os, shutil
        os.makedirs("tree/a/b"), os.makedirs("tree/c")
        open("tree/a/b/1", "w").close(), open("tree/a/2", "w").close()
        shutil.rmtree("tree")
        print(shutil.rmtree.avoids_symlink_attacks, os.listdir())
        """,
        "fs",
    )
    assert printed == f"{shutil.rmtree.avoids_symlink_attacks} []\n"


def test_the_clock_is_another_day_and_nothing_else_is(folder: Path) -> None:
    in_child(
        """
        import calendar, datetime as module, logging, os, pickle, time
        from datetime import date, datetime, timezone

        open("now", "w").close()
        real = os.stat("now").st_mtime  # times of files are untouched
        def is_shifted(seconds):
            return 86_400 < seconds - real < 2 * 86_400
        class Mine(datetime):
            pass

        assert is_shifted(time.time()) and is_shifted(time.time_ns() / 1e9)
        assert is_shifted(calendar.timegm(time.gmtime()))
        assert is_shifted(time.mktime(time.localtime()))
        assert is_shifted(time.mktime(time.localtime(None)))
        assert is_shifted(time.mktime(time.strptime(time.ctime())))
        assert is_shifted(time.mktime(time.strptime(time.asctime())))
        assert is_shifted(float(time.strftime("%s")))
        assert is_shifted(datetime.now().timestamp()) and is_shifted(datetime.today().timestamp())
        assert is_shifted(datetime.now(timezone.utc).timestamp())
        assert is_shifted(datetime.now(tz=timezone.utc).timestamp())
        assert is_shifted(datetime.utcnow().replace(tzinfo=timezone.utc).timestamp())
        assert date.today() == datetime.now().date()
        assert type(Mine.now()) is Mine and is_shifted(Mine.now().timestamp())

        assert time.gmtime(0)[:3] == (1970, 1, 1) and time.strftime("%Y", time.gmtime(0)) == "1970"
        assert datetime.fromtimestamp(real).timestamp() == round(real, 6)
        before = time.monotonic(), time.perf_counter()
        time.sleep(0.01)
        assert time.monotonic() - before[0] < 5 and time.perf_counter() - before[1] < 5

        now = datetime.now()
        assert type(now) is datetime is module.datetime and isinstance(now, date)
        assert pickle.loads(pickle.dumps(now)) == now
        assert pickle.loads(pickle.dumps(time.time)) is time.time
        record = logging.makeLogRecord({"created": 0.0})
        assert logging.Formatter("%(asctime)s").format(record)[:2] == "19"
        """,
        "time",
    )


def test_processes_threads_and_logs_go_on(folder: Path) -> None:
    printed = in_child(
        """
        import logging, multiprocessing, os, tempfile
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        logging.warning("said")
        with tempfile.TemporaryDirectory() as there:
            open(os.path.join(there, "a"), "w").close()
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(abs, [-1, -2])) == [1, 2]
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            with ProcessPoolExecutor(1, mp_context=context) as processes:
                names = processes.submit(os.listdir, "/").result(60)
                print(names == os.listdir("/"))
        """,
        "fs",
        "time",
    )
    assert printed == "True\nFalse\n"  # a spawned process lists as it is
