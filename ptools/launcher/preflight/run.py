"""Run the checks of a preflight in real processes, and judge what they wrote down."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptools.cores import threads_per_process
from ptools.launcher.failures import cause, is_collateral, ordered
from ptools.launcher.job import Job
from ptools.launcher.listen import listen
from ptools.launcher.output import Output
from ptools.launcher.preflight.report import Bandwidth, Check, PreflightReport
from ptools.launcher.preflight.table import rows
from ptools.launcher.records import Failure
from ptools.launcher.supervisor import Outcome, Supervisor
from ptools.launcher.wire import read
from ptools.launcher.world import World

RANKS = "ptools.launcher.preflight.ranks"
_KIND = "preflight"
_START, _END = "start", "end"
_GRACE = 3.0  # seconds
_TIMEOUT = 60.0

_Facts = Mapping[int, Mapping[str, Any]]  # by rank, what it wrote


def run_preflight(
    procs: int, gpus: tuple[str, ...] = (), timeout: float = _TIMEOUT
) -> PreflightReport:
    """Start `procs` processes on this machine, on `gpus` or on the CPU, that check each other.

    Args:
        procs: how many.
        gpus: as in CUDA_VISIBLE_DEVICES; () for the CPU.
        timeout: seconds that a process waits for the others.

        report = run_preflight(2)
        report.ok, report.verdict
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ptools-preflight-") as name, listen() as listener:
        folder, port = Path(name), listener.getsockname()[1]
        world = World(
            procs=procs,
            master_port=port,
            run_id=folder.name,
            threads=threads_per_process(procs),
            gpus=gpus,
            agent_store=True,
        )
        supervisor = Supervisor(
            Job(RANKS, (str(timeout),), "module"),
            world,
            folder,
            Output(folder, procs, "first"),
            _GRACE,
            dict(os.environ),
            listener,
        )
        outcome = supervisor.run()
        facts = dict(read(_KIND, folder))
    first = facts.get(0, {})
    return PreflightReport(
        procs=procs,
        backend=first.get("backend") or ("nccl" if gpus else "gloo"),
        rows=tuple(rows(procs, port, first)),
        checks=tuple(_checks(procs, facts, outcome, timeout)),
        bandwidth=tuple(_bandwidth(procs, first)),
        seconds=time.monotonic() - started,
        signal=outcome.signal,
    )


def _checks(procs: int, facts: _Facts, outcome: Outcome, timeout: float) -> Iterator[Check]:
    """The checks in order, with the ranks where they failed."""
    ended_at, ranks, detail = _broken(procs, facts, outcome.failures, timeout)
    names: list[str] = next((fact["names"] for fact in facts.values()), [])
    for name in [_START, *names]:
        wrong = {rank: fact["results"].get(name) for rank, fact in facts.items()}
        wrong = {rank: text for rank, text in sorted(wrong.items()) if text is not None}
        if wrong:
            yield Check(name, "failed", tuple(wrong), next(iter(wrong.values())))
        elif name == ended_at:
            yield Check(name, "failed", ranks, detail)
        else:
            passed = [rank for rank, fact in facts.items() if name in (_START, *fact["results"])]
            yield Check(name, "ok" if len(passed) == procs else "not run")


def _broken(
    procs: int, facts: _Facts, failures: list[Failure], timeout: float
) -> tuple[str | None, tuple[int, ...], str]:
    """The check at which processes ended or stood still, which ones, and why."""
    if not failures:
        return None, (), ""
    first = ordered(failures)[0]
    silent = set(range(procs)) - {failure.rank for failure in failures}
    if is_collateral(first) and silent:  # the others gave up waiting for these
        ranks, detail = tuple(sorted(silent)), f"no answer for {timeout:g} s"
    else:
        kind, message = cause(first)
        reason = message.strip().partition("\n")[0]
        by_itself = kind in ("exit", "killed") or not reason  # no exception, or one without words
        ranks, detail = (first.rank,), (reason or kind) if by_itself else f"{kind}: {reason}"
    if ranks[0] not in facts:
        return _START, ranks, detail
    at = facts[ranks[0]]["running"] or _END  # as of Python itself, when all was done
    return at, ranks, detail


def _bandwidth(procs: int, fact: Mapping[str, Any]) -> Iterator[Bandwidth]:
    """Bus bandwidth as nccl-tests defines it: what each link of a ring must have carried.

    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md#allreduce
    """
    for size, seconds in fact.get("bandwidth", []):
        yield Bandwidth(size, seconds, 2 * (procs - 1) / procs * size / seconds)
