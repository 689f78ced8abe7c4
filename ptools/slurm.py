"""The world that SLURM has set out, read from the environment of a task.

https://slurm.schedmd.com/srun.html, section OUTPUT ENVIRONMENT VARIABLES.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from ptools.errors import UsageError

_MOST_HOSTS = 1 << 16
_ONE_PER_NODE = "srun --ntasks-per-node=1 ptools launch ..."
_INTERACTIVE = "4294967290"  # the step that is the shell of salloc


@dataclass(frozen=True)
class SlurmWorld:
    """The machines of a job step, seen from one of its tasks."""

    nodes: int
    node_rank: int
    master: str  # the first of the machines
    port: int  # the same for all tasks of a step, another for each step
    run_id: str
    procs_per_node: int | None  # None: SLURM has not been told
    launched_per_task: bool  # a task for each process: this one is a rank, with none to start


def from_slurm(environ: Mapping[str, str]) -> SlurmWorld | None:
    """The world of the step that this process is a task of; None outside of SLURM.

    One machine is nothing to be set out, so that is None too, unless it has several tasks.

    Raises:
        UsageError: what SLURM says is incomplete or contradicts itself, or there are several
            machines and no srun.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    if environ.get("SLURM_STEP_ID", _INTERACTIVE) == _INTERACTIVE:
        _check_alone(environ)
        return None
    nodes = _number(environ, "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    node_rank = _number(environ, "SLURM_NODEID")
    if nodes == tasks == 1:
        return None
    hosts = _hosts(environ, nodes)
    if node_rank >= nodes:
        raise _contradiction(f"SLURM_NODEID={node_rank} of {nodes} machines")
    if tasks % nodes:
        raise _contradiction(f"{tasks} tasks on {nodes} machines are not the same number on each")
    step = f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"
    return SlurmWorld(
        nodes=nodes,
        node_rank=node_rank,
        master=hosts[0],
        port=20000 + zlib.crc32(step.encode()) % 10000,  # below those that systems give out
        run_id=step,
        procs_per_node=tasks // nodes if tasks > nodes else None,
        launched_per_task=tasks > nodes,
    )


def per_task_error(world: SlurmWorld) -> UsageError:
    """What to say when SLURM has started a task for each process, which is the launcher's work."""
    return UsageError(
        f"SLURM runs {world.procs_per_node} tasks on each machine, and each would start all of its "
        "processes",
        hint=f"one task for each machine: {_ONE_PER_NODE}",
    )


def expand(text: str) -> list[str]:
    """The host names of a SLURM list: "gpu[01-03,07],login" are gpu01, gpu02, gpu03, gpu07, login.

    Raises:
        UsageError: the list cannot be read, or has more hosts than any cluster.
    """
    found: list[str] = []
    for entry in _entries(text):
        parts = re.split(r"\[([^\[\]]*)\]", entry)
        if any(letter in part for part in parts[::2] for letter in "[] \t"):
            raise _unreadable(text)
        choices = [
            list(_numbers(part, text)) if index % 2 else [part] for index, part in enumerate(parts)
        ]
        for combination in product(*choices):
            found.append("".join(combination))
            if len(found) > _MOST_HOSTS:
                raise _unreadable(text)
    if not found or not all(found):
        raise _unreadable(text)
    return found


def _entries(text: str) -> list[str]:
    """What the commas outside of brackets part."""
    return re.split(r",(?![^\[]*\])", text)


def _numbers(ranges: str, text: str) -> Iterator[str]:
    """ "01-03,07" as 01, 02, 03, 07: as many digits as the first of a range has."""
    for part in ranges.split(","):
        matched = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if matched is None:
            raise _unreadable(text)
        first, last = matched[1], matched[2] or matched[1]
        if not 0 <= int(last) - int(first) < _MOST_HOSTS:
            raise _unreadable(text)
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def _check_alone(environ: Mapping[str, str]) -> None:
    """Without srun this runs once, however many machines the job has."""
    nodes = environ.get("SLURM_JOB_NUM_NODES", environ.get("SLURM_NNODES", "1"))
    if nodes != "1":
        raise UsageError(
            f"this SLURM job has {nodes} machines, but this runs on the first of them alone",
            hint=f"in the batch script: {_ONE_PER_NODE}; or --nodes 1 for this machine alone",
        )


def _hosts(environ: Mapping[str, str], nodes: int) -> list[str]:
    text = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    text = text or environ.get("SLURM_NODELIST")
    if not text:
        raise _missing("SLURM_JOB_NODELIST")
    hosts = expand(text)
    if len(hosts) != nodes:
        raise _contradiction(f"{nodes} machines, but {text} are {len(hosts)}")
    return hosts


def _number(environ: Mapping[str, str], *names: str) -> int:
    for name in names:
        if name in environ:
            if not re.fullmatch(r"[0-9]{1,9}", environ[name]):
                raise _contradiction(f"{name}={environ[name]} is no number")
            return int(environ[name])
    raise _missing(names[-1])


def _missing(name: str) -> UsageError:
    return UsageError(
        f"this is a SLURM task, but {name} is not set",
        hint=f"start it by srun: {_ONE_PER_NODE}; or say it all: --nodes N --master HOST",
    )


def _contradiction(what: str) -> UsageError:
    return UsageError(
        f"what SLURM says of this task contradicts itself: {what}",
        hint=f"start it by srun: {_ONE_PER_NODE}; or say it all: --nodes N --master HOST",
    )


def _unreadable(text: str) -> UsageError:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return UsageError(
        f"cannot read SLURM's list of machines {shown!r}", hint="say it: --nodes N --master HOST"
    )
