import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.launcher.job import Job
from ptools.launcher.multinode import equivalent, meet
from ptools.launcher.world import World

MASTER, OTHER = "10.77.31.1", "10.77.31.2"
SPACES = ("ptools_a", "ptools_b")

LAUNCH = """
import os, sys
from pathlib import Path
from ptools.errors import PtoolsError
from ptools.launcher.job import Job
from ptools.launcher.multinode import meet, run_nodes
from ptools.launcher.output import Output
from ptools.launcher.supervisor import Supervisor
from ptools.launcher.world import World

nodes, master, procs, restarts, folder, script, *arguments = sys.argv[1:]
Path(folder).mkdir()
world = World(procs=int(procs), master_port=0, run_id="", threads=1, gpus=())
job = Job(script, tuple(arguments))

def attempt(world, folder):
    output = Output(folder, world.procs, "all", world.rank(0))
    return Supervisor(job, world, folder, output, 5, dict(os.environ))

say = lambda text: print("note:", text, file=sys.stderr, flush=True)
try:
    meeting = meet(nodes, None if master == "-" else master, int(restarts))
    ended = run_nodes(meeting, world, Path(folder), attempt, say=say)
except PtoolsError as error:
    sys.exit(f"error: {error.message}")
print("attempts", ended.attempts, "nodes", ended.world.nodes, flush=True)
print("failures", [(one.rank, one.message) for one in ended.outcome.failures], flush=True)
if ended.outcome.signal:
    sys.exit(128 + ended.outcome.signal)
sys.exit(1 if ended.outcome.failures else 0)
"""

ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
number = torch.ones(1)
dist.all_reduce(number)
print("sum", int(number), dist.get_world_size(), flush=True)
dist.destroy_process_group()
"""

TRAIN = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
dist.init_process_group("gloo")
file = Path(sys.argv[1])
step = int(file.read_text()) if file.exists() else 0
while step < 20:
    number = torch.ones(1)
    dist.all_reduce(number)
    step += 1
    if dist.get_rank() == 0:
        file.write_text(str(step))
        print("step", step, "of a world of", dist.get_world_size(), flush=True)
    time.sleep(0.2)
    if dist.get_world_size() == 2 and step > 12:
        time.sleep(60)  # only the smaller world is to finish
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the launcher in a network namespace, or in none."""
    (tmp_path / "launch.py").write_text(LAUNCH)
    started: list[subprocess.Popen[str]] = []

    def run(
        space: str | None, nodes: str, master: str, script: str, *arguments: str, **settings: int
    ):
        file = tmp_path / f"script_{len(started)}.py"
        file.write_text(script)
        command = ["ip", "netns", "exec", space] if space else []
        command += [sys.executable, str(tmp_path / "launch.py"), nodes, master]
        command += [str(settings.get("procs", 1)), str(settings.get("restarts", 0))]
        command += [str(tmp_path / f"run_{len(started)}"), str(file), *arguments]
        outer = {name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outer
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, in which no host name is known."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 (ip) is not installed")
    first, second = SPACES
    steps = [
        f"netns add {first}",
        f"netns add {second}",
        f"link add pt_a netns {first} type veth peer name pt_b netns {second}",
        f"-n {first} addr add {MASTER}/24 dev pt_a",
        f"-n {second} addr add {OTHER}/24 dev pt_b",
        *(f"-n {space} link set {name} up" for space in SPACES for name in ("lo",)),
        f"-n {first} link set pt_a up",
        f"-n {second} link set pt_b up",
    ]
    try:
        for step in steps:
            done = subprocess.run(["ip", *step.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces may be made here: {done.stderr.strip()}")
        yield first, second
    finally:
        for space in SPACES:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


def lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None
    yield from iter(process.stdout.readline, "")


@pytest.mark.slow
def test_two_machines_form_a_world_from_nothing_but_the_masters_address(
    start: Start, two_machines: tuple[str, str]
) -> None:
    begun = time.monotonic()
    both = [start(space, "2", MASTER, ALL_REDUCE) for space in two_machines]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("sum 2 2" in output for output, _ in said)
    assert time.monotonic() - begun < 15


@pytest.mark.slow
@pytest.mark.parametrize("master", ["no-such-host", "192.168.201.1"])
def test_a_wrong_master_is_named_and_nothing_hangs(
    start: Start, two_machines: tuple[str, str], master: str
) -> None:
    begun = time.monotonic()
    process = start(two_machines[0], "2", master, ALL_REDUCE)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.startswith("error: ") and master in told
    assert time.monotonic() - begun < 45  # it may just not have been started yet: 30 s are waited


@pytest.mark.slow
def test_training_resumes_on_the_other_machine_when_one_is_killed(
    start: Start, two_machines: tuple[str, str], tmp_path: Path
) -> None:
    first, second = two_machines
    state = str(tmp_path / "state")
    stays = start(first, "1:2", MASTER, TRAIN, state, restarts=3)
    goes = start(second, "1:2", MASTER, TRAIN, state, restarts=3)
    seen: list[str] = []
    for line in lines(stays):
        seen.append(line)
        if "step 5 of a world of 2" in line:
            goes.send_signal(signal.SIGKILL)
            break
    rest, told = stays.communicate(timeout=120)
    assert stays.returncode == 0, told
    assert "step 20 of a world of 1" in rest
    assert "step 1 of a world of 1" not in rest  # resumed, not begun again
    assert "attempts 2 nodes 1" in rest


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["0", "1"])
def test_a_failure_on_one_machine_ends_the_other_too_and_is_told_there(
    start: Start, two_machines: tuple[str, str], failing: str
) -> None:
    script = f"""
import os, time
if os.environ["RANK"] == "{failing}":
    raise ValueError("bad label")
time.sleep(100)
"""
    begun = time.monotonic()
    both = [start(space, "2", MASTER, script) for space in two_machines]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [1, 1], said
    assert all(f"failures [({failing}, 'bad label')]" in output for output, _ in said)
    assert time.monotonic() - begun < 25


@pytest.mark.slow
def test_a_machine_that_is_done_waits_for_the_other(
    start: Start, two_machines: tuple[str, str]
) -> None:
    script = "import os, time\ntime.sleep(5 * int(os.environ['RANK']))"
    both = [start(space, "2", MASTER, script) for space in two_machines]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said


@pytest.mark.slow
def test_machines_with_different_numbers_of_processes_are_told_apart(
    start: Start, two_machines: tuple[str, str]
) -> None:
    both = [
        start(space, "2", MASTER, ALL_REDUCE, procs=procs)
        for space, procs in zip(two_machines, (1, 2), strict=True)
    ]
    for process in both:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 1 and "machines" in told


def test_the_processes_are_started_again_after_a_failure_with_records_of_each_attempt(
    start: Start, tmp_path: Path
) -> None:
    script = """
import os
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    raise ValueError("bad label")
print("through", os.environ["TORCHELASTIC_MAX_RESTARTS"], flush=True)
"""
    process = start(None, "1", "-", script, procs=2, restarts=2)
    output, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "attempts 2" in output and "failures []" in output
    assert output.count("through 2") >= 2
    run = tmp_path / "run_0"
    assert (run / "failure_1.json").exists()
    assert not (run / "restart_1" / "failure_1.json").exists()


def test_the_failures_of_the_last_attempt_are_what_is_told(start: Start) -> None:
    script = "import os, time\nif os.environ['RANK'] == '1': os._exit(7)\ntime.sleep(30)"
    process = start(None, "1", "-", script, procs=2, restarts=1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "attempts 2" in output and "failures [(1, 'exit code 7')]" in output


def test_an_argument_with_a_dollar_comes_as_it_was(start: Start) -> None:
    words = ["$$", "${local_rank}", "-n"]
    process = start(None, "1", "-", "import sys\nprint(sys.argv[1:])", *words)
    output, told = process.communicate(timeout=60)
    assert str(words) in output, told


def test_ctrl_c_ends_the_processes_and_a_second_one_at_once(start: Start) -> None:
    script = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("not yet", flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""
    process = start(None, "1", "-", script)
    for line in lines(process):
        if "ready" in line:
            process.send_signal(signal.SIGINT)
        if "not yet" in line:
            break
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - begun < 2


def test_ctrl_c_while_waiting_for_others_ends_it(start: Start, tmp_path: Path) -> None:
    address = _own_address()
    process = start(None, "2", f"{address}:29581", ALL_REDUCE)
    assert process.stderr is not None
    killer = threading.Timer(30, process.kill)
    killer.start()
    for line in iter(process.stderr.readline, ""):
        if "waiting for other machines" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    killer.cancel()
    assert process.returncode == 130


def test_a_port_that_is_taken_on_the_master_is_named() -> None:
    import socket

    from ptools.launcher.route import check_free

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PtoolsError, match=f"port {port} cannot be had") as caught:
            check_free("127.0.0.1", port)
    assert caught.value.hint is not None and str(port + 1) in caught.value.hint


@pytest.mark.parametrize("nodes", ["0", "2:1", "two", "1:", ":2", "-1", "1:2:3", ""])
def test_a_number_of_machines_that_cannot_be_is_refused(nodes: str) -> None:
    with pytest.raises(UsageError, match="number of machines"):
        meet(nodes, "127.0.0.1")


def test_several_machines_cannot_meet_at_their_own_loopback_or_nowhere() -> None:
    with pytest.raises(UsageError, match="each machine itself"):
        meet("2", "localhost")
    with pytest.raises(UsageError, match="where to meet"):
        meet("2", None)


def test_the_equivalent_torchrun_command_is_one_that_torchrun_understands() -> None:
    import shlex

    from torch.distributed.run import config_from_args, parse_args

    meeting = meet("1", "127.0.0.1:29512", restarts=3, run_id="job")
    world = World(procs=2, master_port=0, run_id="", threads=3, gpus=())
    command, environment = equivalent(Job("train.py", ("--lr", "0.1 2")), meeting, world)
    words = shlex.split(command)
    config, _, arguments = config_from_args(parse_args(words[1:]))
    assert words[0] == "torchrun"
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 2)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "127.0.0.1:29512")
    assert (config.run_id, config.max_restarts, config.local_addr) == ("job", 3, "127.0.0.1")
    assert config.rdzv_configs["is_host"] == "1"
    assert arguments[-3:] == ["train.py", "--lr", "0.1 2"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "" and environment["OMP_NUM_THREADS"] == "3"
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"


def _own_address() -> str:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        return str(probe.getsockname()[0])
