"""What went wrong without an error, from what the processes noted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptools.launcher.supervisor import Outcome
from ptools.launcher.wire import read
from ptools.launcher.world import World

_EARLY = 5e9  # nanoseconds that others may run on without a word about it


def warnings(folder: Path, world: World, outcome: Outcome) -> list[str]:
    """One sentence for each mistake, with what to do."""
    ends = dict(read("end", folder))
    found: list[str] = []
    if len(ends) == world.procs and not any(outcome.codes.values()):
        found += _no_group(list(ends.values()), world)
        found += _unused_amp(list(ends.values()))
    found += _left_early(ends, world, outcome)
    found += _same_order(list(ends.values()))
    return found


def _no_group(ends: list[dict[str, Any]], world: World) -> Iterator[str]:
    alone = all(end["torch"] and not end["group"] for end in ends)
    if world.world_size > 1 and alone:
        yield (
            f"{world.world_size} processes ran but no process group was ever formed: each worked "
            "alone, as if it were the only one; call torch.distributed.init_process_group() "
            "(Accelerate, Fabric and Lightning do), or launch one process with -n 1"
        )


def _unused_amp(ends: list[dict[str, Any]]) -> Iterator[str]:
    asked = next((end["amp"] for end in ends if end["amp"] not in (None, "", "no", "off")), None)
    used = any(end["autocast"] for end in ends)
    if asked and not used:
        yield (
            f"--amp {asked} changed nothing: no process entered torch.autocast: the script must ask"
            " for it (as Accelerate and Fabric do), or add --inject"
        )


def _left_early(ends: dict[int, dict[str, Any]], world: World, outcome: Outcome) -> Iterator[str]:
    """A process that ended well in a group whose others went on."""
    last = max(outcome.ended_ns.values(), default=0)
    early = {
        world.rank(local_rank): (last - time_ns) / 1e9
        for local_rank, time_ns in outcome.ended_ns.items()
        if outcome.codes[local_rank] == 0 and last - time_ns > _EARLY
    }
    early = {rank: seconds for rank, seconds in early.items() if ends.get(rank, {}).get("group")}
    if early:
        yield (
            f"{_ranks(list(early))} ended with exit code 0 while others ran on for "
            f"{max(early.values()):.0f} s: what they did together after that failed or waited in "
            "vain; give every rank the same number of steps (fine if the rest only saved or tested)"
        )


def _same_order(ends: list[dict[str, Any]]) -> Iterator[str]:
    samplers = [sampler for end in ends for sampler in end["samplers"]]
    forgotten = [
        sampler["iterations"]
        for sampler in samplers
        if sampler["shuffle"] and not sampler["set_epoch"] and sampler["iterations"] > 1
    ]
    if forgotten:
        yield (
            f"a DistributedSampler gave the same order in each of {max(forgotten)} epochs: call "
            "sampler.set_epoch(epoch) before each"
        )


def _ranks(ranks: list[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"
