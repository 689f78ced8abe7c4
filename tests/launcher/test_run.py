"""What a program finds when it is launched: as under `python`, and as under torchrun."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools import launch
from ptools.errors import UsageError

Write = Callable[[str, str], Path]
Done = subprocess.CompletedProcess[str]

TELL = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "file": __file__, "name": __name__, "path": sys.path[0],
    "package": __package__, "spec": __spec__ and __spec__.name, "cwd": os.getcwd(),
    "loader": type(__loader__).__name__, "code": sys._getframe().f_code.co_filename,
    "names": sorted(globals()),
}))
"""
WORLD = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "ROLE_NAME": "default",
    "ROLE_RANK": "1",
    "ROLE_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}
SUM = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
number = torch.ones(1)
dist.all_reduce(number)
if dist.get_rank() == 0:
    print("sum", int(number), flush=True)
dist.destroy_process_group()
"""


def run(*command: str, **options: object) -> Done:
    values = {"capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run([sys.executable, *command], **values)  # type: ignore[call-overload,no-any-return]


def launched(*words: str, procs: int = 2, **options: object) -> Done:
    return run("-m", "ptools", "launch", "--gpus", "cpu", "-n", str(procs), *words, **options)


def words_of(done: Done) -> object:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_environment_is_that_of_torchrun(write: Write) -> None:
    write(
        "train.py",
        "import json, os\nif os.environ['RANK'] == '1':\n"
        "    print(json.dumps(dict(os.environ)), flush=True)\n",
    )
    done = launched("--show", "all", "train.py", env={**os.environ, "OMP_NUM_THREADS": "3"})
    found = json.loads(done.stdout.removeprefix("[1] "))
    assert {name: found.get(name) for name in WORLD} == WORLD
    assert found["MASTER_PORT"].isdecimal()
    assert found["OMP_NUM_THREADS"] == "3"


def test_torch_believes_it_was_launched_by_torchrun(write: Write) -> None:
    pytest.importorskip("torch")
    write("train.py", f"{SUM}\nprint(dist.is_torchelastic_launched())")
    done = launched("train.py")
    assert done.stdout == "sum 2\nTrue\n", done.stderr


@pytest.mark.parametrize("script", ["train.py", "sub/train.py", "sub/../train.py"])
def test_a_script_finds_what_python_gives_it(write: Write, script: str) -> None:
    for name in ("train.py", "sub/train.py"):
        write(name, TELL)
    arguments = [script, "--gpus", "4", "-n", "8", "--", "-m", "--help"]
    assert words_of(launched(*arguments, procs=1)) == words_of(run(*arguments))


@pytest.mark.parametrize("module", ["top", "package", "package.part", "package.inner"])
def test_a_module_finds_what_python_gives_it(write: Write, module: str) -> None:
    for name in ("top.py", "package/__main__.py", "package/part.py", "package/inner/__main__.py"):
        write(name, f"{TELL}\nif __package__:\n    from . import __path__")
    for name in ("package/__init__.py", "package/inner/__init__.py"):
        write(name, "")
    told, expected = (
        words_of(launched("-m", module, "-m", "x", procs=1)),
        words_of(run("-m", module, "-m", "x")),
    )
    assert told == expected


def test_two_dashes_before_the_script_are_ours(write: Write) -> None:
    write("train.py", "import sys\nprint(sys.argv)")
    done = launched("--", "train.py", "--", "-n", procs=1)
    assert done.stdout == "['train.py', '--', '-n']\n"


def test_what_lies_beside_the_script_can_be_imported(write: Write) -> None:
    write("sub/beside.py", "VALUE = 7")
    write("sub/train.py", "import beside\nprint(beside.VALUE)")
    assert launched("sub/train.py").stdout == "7\n"


def test_what_lies_in_the_current_folder_does_not_hide_pythons_own(write: Write) -> None:
    for name in ("random.py", "signal.py", "runpy.py", "traceback.py"):
        write(name, "raise SystemExit('hidden')")
    write("sub/train.py", "import random\nprint('well')")
    command = Path(sys.executable).with_name("ptools")
    if not command.exists():
        pytest.skip("the command is not installed")
    words = [str(command), "launch", "--gpus", "cpu", "-n", "1", "sub/train.py"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "well\n", done.stderr


def test_what_main_defines_goes_to_spawned_processes(write: Write) -> None:
    write(
        "train.py",
        "import multiprocessing, os, pickle\n"
        "class Item:\n    def __init__(self, value):\n        self.value = value\n"
        "def double(item):\n    return Item(2 * item.value)\n"
        "if __name__ == '__main__':\n"
        "    assert pickle.loads(pickle.dumps(Item(1))).value == 1\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(os.environ['RANK'], pool.map(double, [Item(4)])[0].value, flush=True)\n",
    )
    done = launched("train.py")
    assert done.stdout == "0 8\n", done.stderr


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-"])
def test_what_is_closed_stays_harmless(write: Write, closed: str) -> None:
    write(
        "train.py",
        "import os, socket, sys\nfrom pathlib import Path\n"
        "if os.environ['RANK'] == '0':\n"
        "    with socket.socket(fileno=int(os.environ['PTOOLS_LAUNCH_LISTEN'])) as listener:\n"
        "        port = listener.getsockname()[1]\n"
        "    assert port == int(os.environ['MASTER_PORT'])\n"
        "Path(os.environ['RANK']).write_text(sys.stdin.read())\n",
    )
    line = f"exec '{sys.executable}' -m ptools launch --gpus cpu -n 2 train.py {closed}"
    subprocess.run(["sh", "-c", line], capture_output=True, timeout=30)
    assert Path("0").exists() and Path("1").exists()


def test_all_letters_pass_in_every_locale(write: Write) -> None:
    write("train.py", "import sys\nsys.stdout.buffer.write('zażółć 学习\\n'.encode())")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = launched("--show", "all", "train.py", text=False, env=environment)
    assert sorted(done.stdout.decode().splitlines()) == ["[0] zażółć 学习", "[1] zażółć 学习"]


def test_an_error_of_all_letters_is_told_in_every_locale(write: Write) -> None:
    write("train.py", "raise ValueError('学习 \\udcff')")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = launched("train.py", env=environment)
    assert done.returncode == 1
    assert "ValueError: " in done.stderr and "bug of ptools" not in done.stderr


def test_launches_at_once_have_ports_of_their_own(write: Write) -> None:
    write(
        "train.py",
        "import os, time\nif os.environ['RANK'] == '0':\n"
        "    print(os.environ['MASTER_PORT'], flush=True)\ntime.sleep(0.5)",
    )
    command = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2", "train.py"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(5)]
    ports = {run.communicate(timeout=30)[0] for run in runs}
    assert len(ports) == 5
    assert all(run.returncode == 0 for run in runs)


@pytest.mark.slow
def test_groups_of_launches_at_once_do_not_meet(write: Write) -> None:
    pytest.importorskip("torch")
    write("train.py", SUM)
    command = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2", "train.py"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert {run.communicate(timeout=90)[0] for run in runs} == {b"sum 2\n"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "os.environ['MASTER_PORT'] = '{port}'",
        "os.environ['MASTER_ADDR'] = 'localhost'",
        "import torch.distributed\nos.environ['MASTER_PORT'] = '{port}'",
        "import torch.distributed as dist\n"
        "begin = dist.init_process_group\n"
        "dist.init_process_group = lambda name: begin(name, 'tcp://127.0.0.1:{port}', "
        "rank=int(os.environ['RANK']), world_size=2)",
    ],
)
def test_a_script_may_choose_where_it_meets(write: Write, first: str) -> None:
    pytest.importorskip("torch")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    write("train.py", f"import os\n{first.format(port=port)}\n{SUM}")
    done = launched("train.py", timeout=40)
    assert done.stdout == "sum 2\n", done.stderr


def test_a_seed_makes_runs_alike(write: Write) -> None:
    write("train.py", "import random\nprint(random.random(), hash('x'))")
    first, second, other = (
        launched("--seed", seed, "train.py", procs=1).stdout for seed in ("1", "1", "2")
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.py"], "there is no script nothing.py"),
        (["trian.py"], "did you mean train.py?"),
        (["broken.py"], "broken.py:2"),
        (["-m", "nothing"], "there is no module nothing"),
        (["-m", "package.nothing"], "there is no module package.nothing"),
        (["-m", "package"], "there is no module package"),
        (["-m", "broken"], "broken.py:2"),
        (["."], "is a folder"),
    ],
)
def test_what_cannot_run_is_told_before_anything_starts(
    write: Write, words: list[str], says: str
) -> None:
    write("train.py", "")
    write("broken.py", "import os\nif True print(1)")
    write("package/__init__.py", "from pathlib import Path\nPath('imported').touch()")
    done = launched("--logs", "logs", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not Path("logs").exists() and not Path("imported").exists()


def test_a_hang_is_told_with_the_lines_that_differ(write: Write) -> None:
    write(
        "train.py",
        "import os, time\n"
        "def train():\n    time.sleep(60)\n"
        "def validate():\n    time.sleep(60)\n"
        "print('begun', flush=True)\n"
        "(train if os.environ['RANK'] == '0' else validate)()\n",
    )
    command = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2"]
    command += ["--hang", "1", "train.py"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stderr is not None
        said = ""
        while "different lines" not in said:
            line = launcher.stderr.readline()
            assert line, said
            said += line
        launcher.terminate()
    assert "rank 0: train.py:3 in train" in said
    assert "rank 1: train.py:5 in validate" in said


def test_a_function_can_be_launched(write: Write) -> None:
    write(
        "work.py",
        "import os\nfrom pathlib import Path\ndef work():\n    Path(os.environ['RANK']).touch()\n",
    )
    script = write(
        "main.py",
        "import ptools, sys, os\nfrom pathlib import Path\nfrom work import work\n"
        "def own():\n    Path('own' + os.environ['RANK']).touch()\n"
        "if __name__ == '__main__':\n"
        "    for function in (work, own):\n"
        "        result = ptools.launch(function, procs=2, gpus='cpu')\n"
        "        assert result.exit_code == 0, result\n"
        "    heavy = {'torch', 'numpy', 'rich', 'typer'} & sys.modules.keys()\n"
        "    assert not heavy, heavy\n",
    )
    done = run(str(script))
    assert done.returncode == 0, done.stderr
    assert all(Path(name).exists() for name in ("0", "1", "own0", "own1"))


def test_a_function_in_a_function_cannot_be_launched() -> None:
    with pytest.raises(UsageError, match="cannot be found from another process"):
        launch(lambda: None, procs=1, gpus="cpu")


def test_a_launch_may_come_from_a_thread(write: Write) -> None:
    write("train.py", "import os\nprint('rank', os.environ['RANK'], flush=True)")
    script = write(
        "main.py",
        "import ptools, threading\n"
        "found = []\n"
        "call = lambda: found.append(ptools.launch('train.py', procs=2, gpus='cpu'))\n"
        "thread = threading.Thread(target=call)\nthread.start()\nthread.join()\n"
        "assert found[0].exit_code == 0\n",
    )
    done = run(str(script))
    assert (done.returncode, done.stdout) == (0, "rank 0\n"), done.stderr


def test_a_process_finds_few_modules_imported_that_python_has_not(write: Write) -> None:
    # Each of these takes every process longer than the launcher's own part in it.
    slow = {"dataclasses", "inspect", "socket", "threading", "traceback", "typing"}
    script = write("tell.py", "import sys; print(*sys.modules)")
    alone, one = run(str(script)), launched(str(script), procs=1)
    assert not slow & set(one.stdout.split()) - set(alone.stdout.split()), one.stderr
