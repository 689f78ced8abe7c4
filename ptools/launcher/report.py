"""What came of a run: the failures in order, where the others were, and the exit code."""

import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ptools.launcher.failures import memory_kills, ordered, with_memory
from ptools.launcher.mistakes import warnings
from ptools.launcher.records import Failure, read
from ptools.launcher.stacks import has_begun, last_stack, where, with_stack
from ptools.launcher.supervisor import Outcome
from ptools.launcher.world import World


@dataclass(frozen=True)
class LaunchResult:
    """A run that has ended."""

    exit_code: int  # as a shell gives it: 128 + signal
    procs: int  # on this machine
    world_size: int
    seconds: float
    log_folder: Path
    failures: tuple[Failure, ...]  # the true first one first
    where: dict[int, str]  # by rank: where each of the others was when the first failure was seen
    warnings: tuple[str, ...]
    signal: int | None  # the one that ended the launcher

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        places = {str(rank): text for rank, text in self.where.items()}
        return {**asdict(self), "log_folder": str(self.log_folder), "where": places}


def make_result(
    outcome: Outcome, world: World, folder: Path, seconds: float, kills_before: int | None
) -> LaunchResult:
    """The result of a run whose processes have all ended.

    `kills_before` is what `memory_kills` gave before the run.
    """
    failures = _failures(outcome, folder, kills_before)
    return LaunchResult(
        exit_code=_exit_code(outcome, failures),
        procs=world.procs,
        world_size=world.world_size,
        seconds=seconds,
        log_folder=folder,
        failures=failures,
        where=_where(outcome, world, folder, {failure.rank for failure in failures}),
        warnings=tuple(warnings(folder, world, outcome)),
        signal=outcome.signal,
    )


def _failures(outcome: Outcome, folder: Path, kills_before: int | None) -> tuple[Failure, ...]:
    if not any(outcome.codes.values()):
        return ()  # a program may hand to sys.excepthook what it has dealt with
    kills = memory_kills()
    ended = {rank for rank, _ in read("end", folder)}
    found = (_with_the_moment(with_stack(failure, folder), ended) for failure in outcome.failures)
    explained = (with_memory(failure, kills_before, kills) for failure in found)
    return tuple(ordered(one for one in explained if not _was_asked_for(one, outcome.signal)))


def _with_the_moment(failure: Failure, ended: set[int]) -> Failure:
    """A process that died when the program in it was through, said so."""
    if failure.how != "killed" or failure.rank not in ended:
        return failure
    return replace(failure, message=f"{failure.message} as it exited: the program had ended")


def _was_asked_for(failure: Failure, number: int | None) -> bool:
    """Whether a process only ended because the launcher was told to end."""
    if number is None:
        return False
    return failure.type == "KeyboardInterrupt" or failure.exit_code == 128 + number


def _exit_code(outcome: Outcome, failures: tuple[Failure, ...]) -> int:
    if outcome.signal is not None:
        return 128 + outcome.signal
    if failures:
        return _code(failures[0])
    return next((_shell(code) for code in outcome.codes.values() if code), 0)


def _code(failure: Failure) -> int:
    """The code of a process, as it would have been had the launcher not lost patience."""
    ended_here = failure.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    if failure.how == "killed" or not ended_here:
        return failure.exit_code or 1
    return int(failure.message) & 0xFF if failure.message.isdecimal() else 1


def _shell(code: int) -> int:
    return code if code >= 0 else 128 - code


def _where(outcome: Outcome, world: World, folder: Path, failed: set[int]) -> dict[int, str]:
    """Where each process was that had not failed itself."""
    if not outcome.asked:
        return {}
    found = {}
    ended = {rank for rank, _ in read("end", folder)}
    for local_rank, code in sorted(outcome.codes.items()):
        rank = world.rank(local_rank)
        stack = last_stack(folder / f"stack_{rank}.txt")
        if rank in failed:
            continue
        if code == 0:
            found[rank] = "at its end (exit code 0)"
        elif rank in ended:
            found[rank] = "at its end"
        elif stack is not None and not has_begun(stack):
            found[rank] = "not yet in the program"
        elif stack is not None and (text := where(stack)):
            found[rank] = f"at {text}"
        elif (folder / f"ready_{rank}").exists():
            found[rank] = "asked where it was, and did not answer"
        else:
            found[rank] = "not yet in the program"
    return found
