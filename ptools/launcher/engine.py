"""`launch`: run a script in several processes, and say truly what came of it."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptools.cores import threads_per_process
from ptools.errors import UsageError
from ptools.launcher.devices import Devices, choose
from ptools.launcher.job import Job, check
from ptools.launcher.listen import listen
from ptools.launcher.memory import memory_kills
from ptools.launcher.output import Output, Show
from ptools.launcher.supervisor import Supervisor
from ptools.launcher.wire import INJECT
from ptools.launcher.world import World, environment

if TYPE_CHECKING:
    import socket

    from ptools.launcher.multinode import Meeting
    from ptools.launcher.report import LaunchResult

GRACE = 30.0  # seconds


def launch(
    script: str | Path | Callable[[], object],
    arguments: Sequence[str] = (),
    *,
    procs: int | None = None,
    gpus: str | None = None,
    module: bool = False,
    nodes: str | None = None,
    master: str | None = None,
    restarts: int = 0,
    show: Show = "first",
    logs: str | Path | None = None,
    grace: float = GRACE,
    hang: float | None = None,
    amp: str | None = None,
    inject: bool = False,
    seed: int | None = None,
    debug: bool = False,
    say: Callable[[str], None] | None = None,
) -> "LaunchResult":
    """Run a script, a module or a function in several processes, on this machine or on several.

    Each finds its rank and the others as under torchrun. What the processes print goes to the
    terminal and to files; when one fails, the others are ended, and the result says which was the
    first and why.

    Args:
        script: a path; with `module` a module's name; or a function of no arguments that can be
            imported, or is defined in the running script.
        arguments: the script's own.
        procs: how many processes on this machine; as many as GPUs by default.
        gpus: "4", "0,2", "all" or "cpu"; all there are by default.
        nodes: "2", or "1:4" for at least one and at most four machines, each of which runs this
            same call; what SLURM says by default.
        master: HOST or HOST:PORT of the machine where they meet.
        restarts: how often the whole run is begun anew after a failure.
        show: what `first` shows is rank 0 alone, until another fails; `none` is for the files.
        logs: the folder for the files; a new one in the temporary folder by default.
        grace: seconds until processes that were asked to end are killed.
        hang: seconds without a sign of life after which all stacks are shown.
        amp: "bf16", "fp16" or "off", for scripts that use Accelerate, Fabric or ptools.train.
        inject: enter autocast around the models of any other script.
        seed: for Python, NumPy and torch in every process.
        debug: switch on the checks and messages of torch.distributed.
        say: is told notes for the user.

    Raises:
        UsageError: there is no such script, or not as many GPUs.

        result = ptools.launch("train.py", ["--lr", "0.1"], gpus="2")
        result.exit_code, result.failures
    """
    started = time.monotonic()
    _open_what_is_closed()
    tell = say or (lambda text: None)
    job = _job(script, arguments, module)
    check(job)
    devices = _devices(gpus, procs, tell)
    variables = _variables(amp, inject, seed, tell) | (_checks(devices) if debug else {})
    meeting = where_to_meet(nodes, master, restarts)
    folder = _folder(logs)
    world = _world(devices, folder.name)

    def supervisor(
        world: World, folder: Path, listener: "socket.socket | None" = None
    ) -> Supervisor:
        output = Output(folder, world.procs, show, world.rank(0))
        watch = None
        if hang:
            from ptools.launcher.hang import HangWatch

            watch = HangWatch(hang, tell)
        return Supervisor(job, world, folder, output, grace, variables, listener, watch)

    kills = memory_kills()
    if meeting is None:
        with listen() as listener:
            port = listener.getsockname()[1]
            world = world._replace(master_port=port, agent_store=True)
            outcome = supervisor(world, folder, listener).run()
    else:
        from ptools.launcher.multinode import run_nodes

        ended = run_nodes(meeting, world, folder, supervisor, say=tell)
        outcome, world, folder = ended.outcome, ended.world, ended.folder
    from ptools.launcher.report import make_result  # no process has to wait for it

    return make_result(outcome, world, folder, time.monotonic() - started, kills)


def dry_run(
    script: str | Path | Callable[[], object],
    arguments: Sequence[str] = (),
    *,
    procs: int | None = None,
    gpus: str | None = None,
    module: bool = False,
    nodes: str | None = None,
    master: str | None = None,
    restarts: int = 0,
) -> tuple[str, dict[str, str]]:
    """The torchrun command line that does nearly what `launch` would, and the environment for it.

    Raises:
        UsageError: as `launch` does.
    """
    import shlex

    job = _job(script, arguments, module)
    check(job)
    world = _world(choose(gpus, procs), "ptools")
    meeting = where_to_meet(nodes, master, restarts)
    if meeting is None:
        found = environment(world, 0, {})
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU")
        command = ["torchrun", "--standalone", "--nproc-per-node", str(world.procs)]
        command += ["-m"] * (job.kind == "module") + [job.name, *job.arguments]
        return shlex.join(command), {name: found[name] for name in names if name in found}
    from ptools.launcher.multinode import equivalent

    return equivalent(job, meeting, world)


def where_to_meet(nodes: str | None, master: str | None, restarts: int) -> "Meeting | None":
    """What was asked for, else what SLURM says; None for one machine that needs no engine.

    Raises:
        UsageError: what was given, or what SLURM says, is incomplete or contradicts itself.
    """
    slurm = None
    if "SLURM_JOB_ID" in os.environ:
        from ptools.slurm import from_slurm, per_task_error

        slurm = from_slurm(os.environ)
    one = nodes == "1" or (nodes is None and slurm is None)
    if one and master is None and not restarts:
        return None
    from ptools.launcher.multinode import meet

    if slurm is not None and nodes is None and master is None:
        if slurm.launched_per_task:
            raise per_task_error(slurm)
        return meet(str(slurm.nodes), slurm.master, restarts, slurm.run_id, slurm.port)
    return meet(nodes or "1", master, restarts)


def _open_what_is_closed() -> None:
    """Make sure that no pipe of ours becomes the stdin, stdout or stderr of a process."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _devices(gpus: str | None, procs: int | None, tell: Callable[[str], None]) -> Devices:
    devices = choose(gpus, procs)
    if devices.note:
        tell(devices.note)
    return devices


def _world(devices: Devices, run_id: str) -> World:
    threads = threads_per_process(devices.procs)
    return World(devices.procs, 0, run_id, threads, gpus=devices.gpus)


def _job(script: str | Path | Callable[[], object], arguments: Sequence[str], module: bool) -> Job:
    if not callable(script):
        return Job(str(script), tuple(arguments), "module" if module else "script")
    if "<" in script.__qualname__:
        raise UsageError(
            f"{script.__qualname__} cannot be found from another process",
            hint="define the function at the top of a file",
        )
    home = script.__module__
    if home == "__main__":
        home = str(Path(sys.modules["__main__"].__file__ or "").resolve())
    return Job(f"{home}:{script.__qualname__}", tuple(arguments), "function")


def _variables(
    amp: str | None, inject: bool, seed: int | None, tell: Callable[[str], None]
) -> dict[str, str]:
    found = dict(os.environ)
    if inject and amp is None:
        raise UsageError("--inject enters autocast: in which precision?", hint="add --amp bf16")
    if amp is not None:
        from ptools.launcher.amp import amp_environment, check_inject

        more, note = amp_environment(amp)
        found |= more
        if note:
            tell(note)
        if inject:
            check_inject(amp)
            found[INJECT] = "1"
    if seed is not None:
        found |= {"PYTHONHASHSEED": str(seed), "PTOOLS_SEED": str(seed)}
    return found


def _checks(devices: Devices) -> dict[str, str]:
    """The environment for the checks and messages of torch.distributed and NCCL."""
    # Among CPU processes torch 2.13 crashes in the constructor of DDP when told more than INFO.
    detail = "DETAIL" if devices.gpus else "INFO"
    return {
        "TORCH_DISTRIBUTED_DEBUG": os.environ.get("TORCH_DISTRIBUTED_DEBUG", detail),
        "TORCH_SHOW_CPP_STACKTRACES": os.environ.get("TORCH_SHOW_CPP_STACKTRACES", "1"),
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "INFO"),
    }


def _folder(logs: str | Path | None) -> Path:
    if logs is None:
        return Path(tempfile.mkdtemp(prefix="ptools-launch-"))
    folder = Path(logs).absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="give a new folder for the logs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}") from error
    return folder
