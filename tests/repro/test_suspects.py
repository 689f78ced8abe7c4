import contextlib
import copy
import datetime
import inspect
import io
import os
import pickle
import random
import shutil
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ptools.repro.suspects.culprit import differing, sentence
from ptools.repro.suspects.notes import Noting, Suspect, Suspects, suspect_from, suspects_in
from ptools.repro.suspects.sources import digest

Write = Callable[[str, str], Path]


def run(file: Path, folder: Path | None = None) -> tuple[list[Suspect], int]:
    """What a program took in, and how often it called `event`, which stands for the trace."""
    events = []
    main = {"event": lambda: events.append(1), "__name__": "program"}
    suspects = Suspects(lambda: len(events), folder)
    with suspects.installed():
        exec(compile(file.read_text(encoding="utf-8"), file, "exec"), main)
        return suspects.told(), len(events)


def twice(file: Path) -> list[Suspect]:
    (a, events), (b, _) = run(file), run(file)
    return differing(a, b, before=events)


CAUSES = {
    "a draw from a generator that nobody seeded": (
        """
        import random
        x = random.random()  # cause
        """,
        "random.random() drew other numbers: random.seed() was not called before",
    ),
    "a draw before the seed": (
        """
        import random
        first = random.random()  # cause
        random.seed(0)
        then = random.random()
        """,
        "random.seed() was not called before",
    ),
    "numpy unseeded, python seeded": (
        """
        import random, time, os
        import numpy as np
        random.seed(1)
        start, pid = time.time(), os.getpid()
        y = random.random()
        x = np.random.rand(3)  # cause
        """,
        "np.random.rand() drew other numbers: np.random.seed() was not called before",
    ),
    "a seed made from the clock, and the draw": (
        """
        import random, time
        now = time.time_ns()
        random.seed(now)  # cause
        x = random.random()
        """,
        "seeded with another value here: random.seed(now)",
    ),
    "torch seeded from the pid's like": (
        """
        import os
        import torch
        torch.manual_seed(int.from_bytes(os.urandom(4)))  # cause
        """,
        "seeded with another value here: torch.manual_seed(int.from_bytes(os.urandom(4)))",
    ),
    "a seed of one generator does not stand before a draw from another": (
        """
        import random, time
        import numpy as np
        random.seed(time.time_ns())
        x = np.random.normal()  # cause
        """,
        "np.random.normal() drew",
    ),
    "a generator made without a seed": (
        """
        import numpy as np
        rng = np.random.default_rng()  # cause
        x = rng.random()
        """,
        "give np.random.default_rng() a seed",
    ),
    "a bit generator made without a seed": (
        """
        import numpy as np
        rng = np.random.Generator(np.random.PCG64())  # cause
        """,
        "give np.random.PCG64() a seed",
    ),
    "python's generator object without a seed": (
        """
        import random
        rng = random.Random()  # cause
        """,
        "give random.Random() a seed",
    ),
    "seeded by the system on purpose": (
        """
        import numpy as np
        np.random.seed()  # cause
        x = np.random.rand()
        """,
        "give np.random.seed() a seed",
    ),
    "torch seeded by the system": (
        """
        import torch
        torch.seed()  # cause
        """,
        "each time: write torch.manual_seed(0)",
    ),
    "a torch generator seeded by the system": (
        """
        import torch
        g = torch.Generator()
        g.seed()  # cause
        """,
        "each time: write g.manual_seed(0)",
    ),
    "a torch generator with another seed": (
        """
        import time, torch
        g = torch.Generator().manual_seed(time.time_ns())  # cause
        """,
        "seeded with another value here: torch.Generator().manual_seed(time.time_ns())",
    ),
    "the clock, not the one that measures": (
        """
        import time
        noise = time.time() % 1  # cause
        start = time.perf_counter()
        print(time.time() - start)
        """,
        "time.time() was read here",
    ),
    "the date": (
        """
        from datetime import datetime
        noise = datetime.now().microsecond  # cause
        """,
        "datetime.datetime.now() was read here",
    ),
    "the clock nearest before": (
        """
        import time
        early = time.time()
        event()
        late = time.time()  # cause
        """,
        "time.time() was read here",
    ),
    "the pid, though logging reads the clock": (
        """
        import logging, os, time
        noise = os.getpid()  # cause
        logging.getLogger("x").warning("hello")
        """,
        "os.getpid() was read here",
    ),
    "the clock, though a package reads it later": (
        """
        import email.utils, time
        noise = time.time()  # cause
        event()
        date = email.utils.formatdate()
        """,
        "time.time() was read here",
    ),
    "a unique name": (
        """
        import uuid
        name = uuid.uuid4().hex  # cause
        """,
        "uuid.uuid4() is another in each run",
    ),
    "a shuffle": (
        """
        import random
        order = list(range(20))
        random.shuffle(order)  # cause
        """,
        "random.shuffle() drew",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_suspect_is_the_cause(name: str, write: Write) -> None:
    text, told = CAUSES[name]
    file = write("program.py", inspect.cleandoc(text))
    first = twice(file)[0]
    (line,) = [n for n, line in enumerate(file.read_text().splitlines(), 1) if "# cause" in line]
    assert (first.place.file, first.place.line) == (str(file), line)
    assert told in sentence(first)


SOUND = """
import os, random, time
import numpy as np
import torch
random.seed(3), np.random.seed(3), torch.manual_seed(3)
rng = np.random.default_rng(3)
other = random.Random(3)
for _ in range(50):
    x = random.random(), np.random.rand(4), np.random.choice(["a", "b"]), random.choice([None, 1])
    random.shuffle([object(), object()])
    event()
"""


def test_what_is_seeded_alike_is_no_suspect(write: Write) -> None:
    assert twice(write("program.py", SOUND)) == []


def test_what_comes_after_the_difference_is_no_suspect(write: Write) -> None:
    text = """
    import random, time
    random.seed(1)
    for step in range(4):
        x = random.random()
        if step == 1:
            event()
            random.seed(time.time_ns())
    """
    file = write("program.py", inspect.cleandoc(text))
    (a, _), (b, _) = run(file), run(file)
    assert differing(a, b, before=0) == []
    found = [one.what for one in differing(a, b, before=1)]
    assert found == ["random.seed", "time.time_ns", "random.random"]


def test_a_line_that_only_one_run_comes_to_is_a_suspect(write: Write) -> None:
    a, _ = run(write("program.py", "import random\nrandom.seed(1)\n"))
    b, _ = run(write("program.py", "import random\nrandom.seed(1)\nx = random.random()\n"))
    assert [one.what for one in differing(a, b, before=0)] == ["random.random"]


@pytest.mark.parametrize("call", ["os.listdir('.')", "list(os.walk('.'))", "glob.glob('*')"])
def test_a_listing_in_another_order_is_a_suspect(
    call: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("program.py", f"import glob, os\nx = sorted(os.listdir('.'))\ny = {call}\n")
    assert twice(file) == []
    write("other.txt", "")
    a, _ = run(file)
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    monkeypatch.setattr(os, "scandir", lambda path: Reversed(scandir(path)))
    b, _ = run(file)
    found = differing(a, b, before=0)
    assert [one.place.line for one in found] == [3, 2]
    assert "sort it" in sentence(found[0])


class Reversed(contextlib.ExitStack):
    """What stands for os.scandir in a run that is perturbed."""

    def __init__(self, entries: Any) -> None:
        super().__init__()
        self._entries = iter(list(entries)[::-1])

    def __iter__(self) -> Any:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)


def test_a_host_that_is_asked_and_a_line_that_is_read_are_named(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import socket\nx = input()\nsocket.getaddrinfo('127.0.0.1', 80)\n"
    file = write("program.py", text)
    found = []
    for line in ("one", "two"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        found.append(run(file)[0])
    assert [sentence(one) for one in differing(*found, before=0)] == [
        "input() read other text here: give both runs the same input",
        "socket.getaddrinfo() asked '127.0.0.1' here: what comes from there may change",
    ]


def test_what_a_package_draws_is_told_at_the_users_line(write: Write) -> None:
    file = write("program.py", "import tempfile\nwith tempfile.TemporaryDirectory():\n    pass\n")
    told, _ = run(file)
    assert {one.place.line for one in told} == {2}
    assert {one.through for one in told} == {"tempfile"}


def test_an_import_is_nobodys_draw(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write("site-packages/drawing.py", "import os\nkey = os.urandom(4)\n")
    monkeypatch.syspath_prepend(package.parent)
    assert run(write("program.py", "import drawing\n"))[0] == []


def test_a_call_within_a_watched_call_is_told_once(write: Write) -> None:
    file = write("program.py", "import datetime, torch, uuid\nuuid.uuid4()\ntorch.manual_seed(1)\n")
    assert [one.what for one in run(file)[0]] == ["uuid.uuid4", "torch.manual_seed"]


def test_a_suspect_comes_back_from_its_json(write: Write) -> None:
    (told,), _ = run(write("program.py", "import time\nfor _ in range(40): time.time()\n"))
    assert (told.kind, told.what, told.count) == ("clock", "time.time", 40)
    assert [number for number, _, _ in told.history] == [*range(1, 17), 32]
    assert suspect_from(told.to_dict()) == told


def test_a_digest_sees_order_and_sign_and_no_address() -> None:
    import numpy as np

    values: list[Any] = [1, -1, True, 0.5, "a", b"ab", None, (1, 2), (2, 1), ["a"], [["a"]]]
    values += [np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([0.0]), np.array([-0.0])]
    found = [digest(value) for value in values]
    assert [n for n, one in enumerate(found) if one in found[:n]] == [2]  # True is 1
    assert digest(object()) == digest(object())
    assert digest(np.array([object()])) == digest(np.array([object()]))
    endless: list[Any] = []
    endless.append(endless)
    assert digest(endless) == digest([endless])


def test_nothing_that_a_program_does_with_the_functions_breaks() -> None:
    with Suspects(lambda: 0).installed():
        assert time.time is not TIME
        Clock = type("Clock", (), {"now": time.time, "draw": random.random})
        assert Clock().now() > 0 and 0 <= Clock().draw() < 1
        for function in (random.random, time.time, os.listdir):
            assert pickle.loads(pickle.dumps(function)) is function
            assert copy.deepcopy(function) is function
        moment = datetime.datetime.now()
        assert type(moment) is datetime.datetime
        assert pickle.loads(pickle.dumps(moment)) == moment
        assert type("Mine", (datetime.datetime,), {}).now().year == moment.year
        assert datetime.datetime.now(datetime.UTC).tzinfo is datetime.UTC
        assert random.Random(3).random() == THIRD
        assert str(inspect.signature(random.randint)) == "(a, b)"
        assert os.scandir in os.supports_fd


TIME, THIRD = time.time, random.Random(3).random()


def test_all_functions_are_put_back() -> None:
    import numpy as np
    import torch

    def members() -> list[dict[str, Any]]:
        owners: list[ModuleType | type] = [time, os, random, np.random, np.random.bit_generator]
        owners += [torch, torch.cuda, torch.Generator, datetime.datetime, datetime.date]
        owners += [random.Random, random.SystemRandom]
        return [dict(vars(owner)) for owner in owners] + [{"fd": set(os.supports_fd)}]

    before, state = members(), random.getstate()
    with Suspects(lambda: 0).installed():
        assert members() != before
    assert members() == before
    assert random.getstate() == state


def test_a_forked_child_writes_what_it_takes_in(write: Write, folder: Path) -> None:
    text = """
    import os, random
    random.seed(1)
    random.random()
    for _ in range(2):
        child = os.fork()
        if not child:
            for _ in range(5): random.random()  # here
            os._exit(0)
        os.waitpid(child, 0)
    """
    told, _ = run(write("program.py", inspect.cleandoc(text)), folder)
    own = [one.what for one in told if not one.through]  # modules have hooks for forks
    assert own == ["random.seed", "random.random"]
    children = suspects_in(folder)
    assert [(one.process, one.count, one.place.line) for one in children] == [
        ("1", 5, 7),
        ("2", 5, 7),
    ]
    assert all(one.seeded for one in children)


def test_a_worker_that_keeps_a_generator_is_known_by_its_line(write: Write, folder: Path) -> None:
    text = """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset

    class Data(Dataset):
        def __len__(self): return 4
        def __getitem__(self, index):
            np.random.rand()
            return np.random.default_rng().random()  # here

    list(DataLoader(Data(), num_workers=1))
    """
    file = write("program.py", inspect.cleandoc(text))
    found = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        run(file, folder / name)
        found.append(suspects_in(folder / name))
    first = differing(*found, before=0)[0]
    assert (first.kind, first.what, first.place.line) == ("entropy", "np.random.default_rng", 8)
    assert {one.what: one.seeded for one in found[0]}["np.random.rand"]  # by torch


NOTED: list[int] = []


def test_a_spawned_worker_notes_after_it_was_pickled(write: Write, folder: Path) -> None:
    noting = Noting(NOTED.append, folder)
    with Suspects(lambda: 0).installed():
        noting(2)  # forked: noted already
        assert NOTED == [2]
    text = f"""
    import pickle, sys, os
    sys.path.insert(0, {str(Path(inspect.getfile(Suspects)).parents[2])!r})
    pickle.loads({pickle.dumps(Noting(None, folder))!r})(3)
    from random import random
    random()
    """
    file = write("worker.py", inspect.cleandoc(text))
    assert os.spawnl(os.P_WAIT, sys.executable, "python", str(file)) == 0
    (told,) = suspects_in(folder)
    assert (told.what, told.process, told.place.line) == ("random.random", "worker 3", 5)


def test_removing_a_folder_is_no_less_safe(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    with Suspects(lambda: 0).installed():
        shutil.rmtree(folder / "a")
    assert not (folder / "a").exists()


def test_a_call_costs_about_a_microsecond() -> None:
    with Suspects(lambda: 0).installed():
        seconds = min(timeit.repeat(lambda: time.time(), number=20_000, repeat=5)) / 20_000
    assert seconds < 5e-6
