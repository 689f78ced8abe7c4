"""What came of a run: the failures in order, where the others were, and the exit code."""

import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptools.launcher.mistakes import warnings
from ptools.launcher.supervisor import Outcome
from ptools.launcher.world import World

if TYPE_CHECKING:
    from ptools.launcher.records import Failure


@dataclass(frozen=True)
class LaunchResult:
    """A run that has ended."""

    exit_code: int  # as a shell gives it: 128 + signal
    procs: int  # on this machine
    world_size: int
    seconds: float
    log_folder: Path
    failures: "tuple[Failure, ...]"  # the true first one first
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
    failures: tuple[Failure, ...] = ()
    where: dict[int, str] = {}
    if outcome.asked or any(outcome.codes.values()):  # else nothing is to be explained
        from ptools.launcher.explain import explained, places

        failures = explained(outcome, folder, kills_before)
        where = places(outcome, world, folder, {failure.rank for failure in failures})
    return LaunchResult(
        exit_code=_exit_code(outcome, failures),
        procs=world.procs,
        world_size=world.world_size,
        seconds=seconds,
        log_folder=folder,
        failures=failures,
        where=where,
        warnings=tuple(warnings(folder, world, outcome)),
        signal=outcome.signal,
    )


def _exit_code(outcome: Outcome, failures: "tuple[Failure, ...]") -> int:
    if outcome.signal is not None:
        return 128 + outcome.signal
    if failures:
        return _code(failures[0])
    return next((_shell(code) for code in outcome.codes.values() if code), 0)


def _code(failure: "Failure") -> int:
    """The code of a process, as it would have been had the launcher not lost patience."""
    ended_here = failure.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    if failure.how == "killed" or not ended_here:
        return failure.exit_code or 1
    return int(failure.message) & 0xFF if failure.message.isdecimal() else 1


def _shell(code: int) -> int:
    return code if code >= 0 else 128 - code
