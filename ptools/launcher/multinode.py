"""Several machines, and restarts: torch.distributed.run's elastic agent as the engine.

What people get wrong is computed: who hosts the rendezvous, under which address this machine is
seen, and which network interface Gloo and NCCL are to use. torch is imported by `run_nodes` alone.
"""

import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ptools.errors import UsageError
from ptools.launcher import route
from ptools.launcher.job import Job
from ptools.launcher.supervisor import Outcome, Supervisor
from ptools.launcher.warden import Warden
from ptools.launcher.world import World, environment

PORT = 29400  # torchrun's; no system gives it out by itself
_PATIENCE = 600  # seconds for all machines to come
_TOLD = 5  # seconds of waiting until it is said
_SET = ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True)
class Meeting:
    """Where and how the machines of a run find each other."""

    least: int  # machines without which nothing runs
    most: int
    port: int
    route: route.Route
    run_id: str = "ptools"
    restarts: int = 0

    @property
    def master(self) -> str:
        return route.joined(self.route.master, self.port)

    @property
    def settings(self) -> dict[str, str]:
        """Of the rendezvous, by torch's names; times in seconds."""
        return {
            "is_host": str(int(self.route.is_master)),
            "join_timeout": str(_PATIENCE),
            "last_call_timeout": "15",  # for more machines than the least
            "read_timeout": "15",  # if what answers at the port is no rendezvous
            "keep_alive_interval": "2",  # a machine that missed three is gone
            "keep_alive_max_attempt": "3",
        }


@dataclass(frozen=True)
class Ended:
    """How a run ended on this machine."""

    outcome: Outcome  # of the last attempt
    world: World  # the one of the last attempt
    folder: Path  # where its processes left their records
    attempts: int


def meet(
    nodes: str, master: str | None, restarts: int = 0, run_id: str = "ptools", port: int = PORT
) -> Meeting:
    """Plan a run of "N" or "MIN:MAX" machines that meet at HOST or HOST:PORT.

    Raises:
        UsageError: one of these cannot be read, or the master is every machine's own loopback.
        PtoolsError: the master's name is unknown here, or there is no route to it.
    """
    least, most = _range(nodes)
    if restarts < 0:
        raise UsageError(f"{restarts} restarts cannot be", hint="--restarts 0 or more")
    if master is None and most > 1:
        raise UsageError(
            f"{nodes} machines must know where to meet", hint="--master HOST, the same on all"
        )
    # Alone, any port that is free will do.
    host, port = route.split(master, port) if master is not None else ("127.0.0.1", 0)
    found = route.facing(host, port)
    if found.interface in ("lo", "lo0") and most > 1:
        raise UsageError(
            f"the master {host} is each machine itself",
            hint="give its address in the network that the machines share: --master ADDRESS",
        )
    return Meeting(least, most, port, found, run_id, restarts)


def equivalent(job: Job, meeting: Meeting, world: World) -> tuple[str, dict[str, str]]:
    """What would do nearly the same: torchrun's command line, and the environment for it."""
    settings = ",".join(f"{key}={value}" for key, value in meeting.settings.items())
    nodes = (
        str(meeting.most) if meeting.least == meeting.most else f"{meeting.least}:{meeting.most}"
    )
    command = ["torchrun", "--nnodes", nodes, "--nproc-per-node", str(world.procs)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting.master]
    command += ["--rdzv-id", meeting.run_id, "--rdzv-conf", settings]
    command += ["--local-addr", meeting.route.address, "--max-restarts", str(meeting.restarts)]
    command += ["-m"] * (job.kind == "module") + [job.name, *job.arguments]
    full = environment(_on(world, meeting), 0, {})
    names = ("OMP_NUM_THREADS", *_SET)
    return shlex.join(command), {name: full[name] for name in names if name in full}


def run_nodes(
    meeting: Meeting,
    world: World,
    folder: Path,
    attempt: Callable[[World, Path], Supervisor],
    wait: float = 30.0,
    say: Callable[[str], None] = lambda text: None,
) -> Ended:
    """Run this machine's processes together with those of the other machines.

    Of `world` count procs, gpus and threads: where it stands among the machines is found here.
    `attempt` makes the Supervisor for a world and the folder of its records: `folder` for the first
    attempt, its restart_1 for the next, and so on. `wait` is for the master's port to answer, in
    seconds; `say` takes what a person who waits wants to know.

    Raises:
        PtoolsError: the master does not answer or was lost, its port is taken, not enough machines
            came, or they run different numbers of processes.
    """
    if meeting.route.is_master:
        route.check_free(meeting.route.master, meeting.port)
    else:
        route.check_reachable(meeting.route.master, meeting.port, wait)
    waiting = threading.Timer(_TOLD, say, [f"waiting for other machines at {meeting.master}"])
    waiting.daemon = True
    folders: list[Path] = []

    def begin(world: World) -> Supervisor:
        waiting.cancel()
        folders.append(folder / f"restart_{len(folders)}" if folders else folder)
        folders[-1].mkdir(exist_ok=True)
        supervisor = attempt(world, folders[-1])
        supervisor.start(warden)
        return supervisor

    with Warden() as warden:  # it forks: before there are threads
        waiting.start()
        try:
            from ptools.launcher.agent import run_agent

            outcome, last = run_agent(meeting, _on(world, meeting), begin, say)
        finally:
            waiting.cancel()
    return Ended(outcome, last, folders[-1] if folders else folder, len(folders))


def _on(world: World, meeting: Meeting) -> World:
    name = meeting.route.interface
    return world._replace(interface=name, run_id=meeting.run_id, restarts=meeting.restarts)


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.strip().partition(":")
    numbers = [first, last if colon else first]
    if all(re.fullmatch("[0-9]{1,6}", number) for number in numbers):
        least, most = (int(number) for number in numbers)
        if 1 <= least <= most:
            return least, most
    raise UsageError(
        f"cannot read the number of machines {text!r}", hint="2, or 1:4 for at least 1, at most 4"
    )
