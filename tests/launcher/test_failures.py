"""The first failure, told from those that followed."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.launcher import failures, memory
from ptools.launcher.records import Failure, Frame

CLOSED = "[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:2345"


def failure(rank: int, time_ns: int, kind: str, message: str, how: str = "uncaught") -> Failure:
    return Failure(rank, time_ns, kind, message, how)


def recorded(program: Callable[[], object]) -> Failure:
    """What a process that runs `program` would write."""
    try:
        program()
    except BaseException as error:
        frames = tuple(
            Frame(one.filename, one.lineno or 0, one.name, one.line or "")
            for one in traceback.extract_tb(error.__traceback__)
        )
        text = "".join(traceback.format_exception(error))
        return Failure(0, 1, type(error).__name__, str(error), "uncaught", frames, text)
    raise AssertionError("it did not fail")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RuntimeError", CLOSED),
        ("DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited"),
        ("DistNetworkError", "The client socket has timed out after 60000ms"),
        ("RuntimeError", "Timed out waiting 1800000ms for recv operation to complete"),
        ("BrokenPipeError", "[Errno 32] Broken pipe"),
    ],
)
def test_a_consequence_that_comes_before_its_cause_is_put_after_it(kind: str, message: str) -> None:
    consequence = failure(0, 1_000, kind, message)
    cause = failure(1, 9_000, "ValueError", "bad label")
    assert failures.ordered([consequence, cause]) == [cause, consequence]


@pytest.mark.parametrize("message", ["cannot restore the store", "timeout must be positive"])
def test_words_of_the_users_own_error_make_it_no_consequence(message: str) -> None:
    assert not failures.is_collateral(failure(0, 1, "ValueError", message))


def test_a_process_that_died_without_a_word_comes_before_consequences() -> None:
    died = failure(2, 5_000, "killed", "killed by SIGKILL", "killed")
    assert failures.ordered([failure(0, 1_000, "RuntimeError", CLOSED), died])[0] is died


def test_of_equals_the_earliest_comes_first() -> None:
    late, early = failure(0, 2, "KeyError", "a"), failure(1, 1, "ValueError", "b")
    assert failures.ordered([late, early]) == [early, late]


def test_an_exit_in_answer_to_a_lost_connection_is_a_consequence() -> None:
    def program() -> None:
        try:
            raise RuntimeError(CLOSED)
        except RuntimeError:
            sys.exit(1)

    assert failures.is_collateral(recorded(program))


def test_a_true_error_hidden_by_a_lost_connection_in_its_finally_is_shown() -> None:
    def program() -> None:
        try:
            raise ValueError("bad label")
        finally:
            raise RuntimeError(CLOSED)

    found = recorded(program)
    assert not failures.is_collateral(found)
    assert failures.cause(found) == ("ValueError", "bad label")


def test_an_error_raised_from_another_is_shown_as_the_user_raised_it() -> None:
    def program() -> None:
        try:
            {}["resnet"]
        except KeyError as error:
            raise LookupError("no such model") from error

    assert failures.cause(recorded(program)) == ("LookupError", "no such model")


def test_the_users_line_is_the_innermost_of_their_own_code() -> None:
    torch = pytest.importorskip("torch")

    def program() -> None:
        torch.nn.functional.linear(torch.ones(2), torch.ones(3, 3))
        torch.nn.Linear(2, 2)(torch.ones(3))

    found = failures.user_frame(recorded(program))
    assert found is not None
    assert (found.file, found.function) == (__file__, "program")


def test_no_line_is_the_users_when_all_are_of_installed_packages() -> None:
    frames = (Frame("/v/lib/python3/site-packages/x.py", 1, "f", ""), Frame("<string>", 1, "g", ""))
    assert failures.user_frame(Failure(0, 1, "E", "", "uncaught", frames)) is None


def test_an_error_in_a_dataloader_worker_is_shown_as_it_was_raised_there(
    write: Callable[[str, str], Path],
) -> None:
    data = pytest.importorskip("torch.utils.data")
    script = write(
        "items.py",
        "class Items:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i):\n"
        "        raise ValueError('bad label')\n",
    )
    scope: dict[str, type] = {}
    exec(compile(script.read_text(), str(script), "exec"), scope)
    found = recorded(lambda: list(data.DataLoader(scope["Items"](), num_workers=1)))
    line = failures.user_frame(found)
    assert line is not None
    assert (line.file, line.line) == (str(script), 4)
    assert line.source == "raise ValueError('bad label')"
    assert failures.cause(found) == ("ValueError", "bad label (in DataLoader worker process 0)")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(1, 2, "by the kernel, for memory"), (None, None, "probably"), (1, 1, "not for memory")],
)
def test_a_kill_that_nobody_sent_is_said_to_be_for_memory_if_the_kernel_counted_one(
    before: int | None, after: int | None, said: str
) -> None:
    killed = Failure(0, 1, "killed", "killed by SIGKILL", "killed", exit_code=137)
    assert said in memory.with_memory(killed, before, after).message


def test_other_deaths_have_nothing_to_do_with_memory() -> None:
    crashed = Failure(0, 1, "killed", "killed by SIGSEGV", "killed", exit_code=139)
    assert memory.with_memory(crashed, 1, 2) is crashed


@pytest.mark.parametrize(
    ("lines", "file", "text"),
    [
        ("0::/job\n", "job/memory.events", "low 0\noom 3\noom_kill 7\noom_group_kill 0\n"),
        ("0::/../x\n", "memory.events", "oom_kill 7\n"),
        ("4:cpu:/\n9:memory:/a\n", "memory/a/memory.oom_control", "under_oom 0\noom_kill 7\n"),
    ],
)
def test_the_kernels_count_is_read_from_either_kind_of_cgroup(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str, file: str, text: str
) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text)
    read = Path.read_text

    def read_text(path: Path, *args: str) -> str:
        return lines if path == Path("/proc/self/cgroup") else read(path, *args)

    monkeypatch.setattr(memory, "_CGROUPS", folder)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory.memory_kills() == 7
