"""A result as a page for the terminal."""

import re
import signal
from collections.abc import Iterator

from ptools.console import escaped
from ptools.launcher.failures import cause, is_collateral, is_users, user_frame
from ptools.launcher.records import Failure
from ptools.launcher.report import LaunchResult
from ptools.launcher.stacks import place

_LENGTH = 300  # characters of a message; the whole is in the log
_CONSEQUENCE = 120
_CPP_LINE = re.compile(r"^\[\S+\.(cc|cpp|h|hpp):\d+\] ")  # where torch was built
_GROUPS = 4  # lines of consequences, and of where the others were


def page(result: LaunchResult) -> str:
    """What to say after a run: 4 to 12 lines on a failure, warnings alone after a clean run."""
    lines = [*_first(result), *_consequences(result), *_others(result)]
    if result.exit_code:
        lines += _logs(result)
    lines += [f"warning: {warning}" for warning in result.warnings]
    if result.exit_code:
        lines.append(_verdict(result))
    return "".join(f"{escaped(line)}\n" for line in lines)


def _first(result: LaunchResult) -> Iterator[str]:
    if not result.failures:
        return
    first = result.failures[0]
    yield f"first failure: rank {first.rank}: {_shortened(_what(first), _LENGTH)}"
    frame = user_frame(first) or next(iter(first.frames[::-1]), None)
    if frame is not None:
        outside = "" if is_users(frame) else " (no line of your own code)"
        yield f"  at {place(frame)} in {frame.function}{outside}"
        if frame.source:
            yield f"     {frame.source.strip()}"
    if is_collateral(first):
        yield "  this is what follows when another process goes, but none said why it did"


def _what(failure: Failure) -> str:
    """Type and message."""
    if failure.how == "exit":
        return f"sys.exit({failure.message})" if failure.type == "SystemExit" else failure.message
    kind, message = cause(failure)
    message = _CPP_LINE.sub("", message)
    if kind == "killed":
        return message
    return f"{kind}: {message}" if message else kind


def _shortened(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _consequences(result: LaunchResult) -> Iterator[str]:
    """One line for all that failed in the same way, but for numbers such as a port."""
    groups: dict[str, list[Failure]] = {}
    for failure in result.failures[1:]:
        groups.setdefault(re.sub(r"\d+", "#", _what(failure)), []).append(failure)
    for alike in list(groups.values())[:_GROUPS]:
        after = (alike[0].time_ns - result.failures[0].time_ns) / 1e6
        # A death is seen only when the process has ended, and a `finally` may take its time.
        when = f"+{after:.0f} ms" if after >= 0 else f"reported {-after:.0f} ms earlier"
        ranks = _ranks([failure.rank for failure in alike])
        yield f"then {ranks} ({when}): {_shortened(_what(alike[0]), _CONSEQUENCE)}"
    yield from _more(sum(map(len, list(groups.values())[_GROUPS:])), "failed otherwise")


def _others(result: LaunchResult) -> Iterator[str]:
    groups: dict[str, list[int]] = {}
    for rank, text in result.where.items():
        groups.setdefault(text, []).append(rank)
    for text, ranks in list(groups.items())[:_GROUPS]:
        yield f"{_ranks(ranks)} {'was' if len(ranks) == 1 else 'were'} {text}"
    yield from _more(sum(map(len, list(groups.values())[_GROUPS:])), "were elsewhere")


def _more(count: int, what: str) -> Iterator[str]:
    if count:
        yield f"{count} more {what}: see the logs"


def _ranks(ranks: list[int]) -> str:
    """As in "rank 3" and "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"ranks {text}" if len(ranks) > 1 else f"rank {text}"


def _logs(result: LaunchResult) -> Iterator[str]:
    if result.failures:
        yield f"log: {result.log_folder / f'rank_{result.failures[0].rank}.log'}"
    yield f"all logs: {result.log_folder}"


def _verdict(result: LaunchResult) -> str:
    code = f"exit code {result.exit_code}"
    if result.signal is not None:
        name = "Ctrl-C" if result.signal == signal.SIGINT else signal.Signals(result.signal).name
        return f"stopped by {name} after {result.seconds:.1f} s: {code}"
    if not result.failures:
        return f"failed after {result.seconds:.1f} s: {code}"
    return f"rank {result.failures[0].rank} failed after {result.seconds:.1f} s: {code}"
