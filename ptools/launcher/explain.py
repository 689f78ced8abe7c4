"""Why a run failed: its failures in order, and where the other processes were."""

from dataclasses import replace
from pathlib import Path

from ptools.launcher.failures import ordered
from ptools.launcher.memory import memory_kills, with_memory
from ptools.launcher.records import Failure
from ptools.launcher.stacks import has_begun, last_stack, where, with_stack
from ptools.launcher.supervisor import Outcome
from ptools.launcher.wire import read
from ptools.launcher.world import World


def explained(outcome: Outcome, folder: Path, kills_before: int | None) -> tuple[Failure, ...]:
    """The failures with the true first one first, each with all that is known of it."""
    if not any(outcome.codes.values()):
        return ()  # a program may hand to sys.excepthook what it has dealt with
    kills = memory_kills()
    ended = {rank for rank, _ in read("end", folder)}
    found = (_with_the_moment(with_stack(failure, folder), ended) for failure in outcome.failures)
    found = (with_memory(failure, kills_before, kills) for failure in found)
    return tuple(ordered(one for one in found if not _was_asked_for(one, outcome.signal)))


def places(outcome: Outcome, world: World, folder: Path, failed: set[int]) -> dict[int, str]:
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
