"""Which failure was the first, what followed from it, and where in the user's code it was."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import ptools
from ptools.launcher.records import Failure, Frame

# What torch.distributed, NCCL and gloo raise in a process when another one has gone.
_COLLATERAL_TYPES = {
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
    "ConnectionResetError",
    "ConnectionRefusedError",
    "ConnectionAbortedError",
    "BrokenPipeError",
}
# The same in the words of a type that says nothing: a RuntimeError of C++.
_VAGUE_TYPES = {"RuntimeError", "OSError", "TimeoutError", "EOFError", "DistError"}
_COLLATERAL_WORDS = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|socket (closed|timeout)|broken pipe|gloo"
    r"|nccl|TCPStore|wait_for_tensor|store->get|wait timeout|timed out (waiting|after)"
    r"|collective operation timeout|pair closure",
    re.IGNORECASE,
)
_RAISED = re.compile(r"^ .*\n(?:\w+\.)*(?P<type>\w+)(?:: (?P<message>.*))?$", re.MULTILINE)
_FRAME = re.compile(
    r'^ *File "(?P<file>.+?)", line (?P<line>\d+), in (?P<function>.+)'
    r'(?:\n +(?!File ")(?P<source>\S.*))?',
    re.MULTILINE,
)
_TRACEBACK = "Traceback (most recent call last):"
_NOT_THE_USERS = (
    str(Path(os.__file__).parent) + os.sep,
    str(Path(ptools.__file__).parent) + os.sep,
)


def ordered(failures: Iterable[Failure]) -> list[Failure]:
    """The failures with the true first one first.

    Time alone does not tell: a process that closes its group on the way out is heard of from the
    others before its own error comes to light.
    """
    return sorted(failures, key=lambda failure: (is_collateral(failure), failure.time_ns))


def is_collateral(failure: Failure) -> bool:
    """Whether a process failed because another one had gone.

    The error that began it counts: the group may be gone only in the `finally` of another error.
    """
    kind, message = root(failure)
    vague = kind in _VAGUE_TYPES and _COLLATERAL_WORDS.search(message)
    return kind in _COLLATERAL_TYPES or bool(vague)


def root(failure: Failure) -> tuple[str, str]:
    """Type and message of the error that began a chain of errors."""
    raised = _RAISED.search(failure.text)
    if raised is None:
        return failure.type, failure.message
    return raised["type"], raised["message"] or ""


def cause(failure: Failure) -> tuple[str, str]:
    """Type and message as a person wants to read them.

    An error that was passed on from another process, as by a DataLoader, is that process's own;
    of a chain it is the last, unless that one is about a group that has gone.
    """
    kind, message = failure.type, failure.message
    if (kind, message) != root(failure) and is_collateral(replace(failure, text="")):
        kind, message = root(failure)
    before, _, text = message.partition(_TRACEBACK)
    *_, raised = None, *_RAISED.finditer(text)
    if raised is None:
        return kind, message
    where = re.search(r"in (.+ process \d+)", before)
    return raised["type"], (raised["message"] or "") + (f" (in {where[1]})" if where else "")


def user_frame(failure: Failure) -> Frame | None:
    """The innermost line in the user's own code; in another process's, if it was passed on."""
    passed_on = [
        Frame(match["file"], int(match["line"]), match["function"], match["source"] or "")
        for match in _FRAME.finditer(failure.message)
    ]
    frames = (*failure.frames, *passed_on)
    return next((frame for frame in reversed(frames) if is_users(frame)), None)


def is_users(frame: Frame) -> bool:
    """Whether it is neither Python's own, nor of an installed package, nor of ptools."""
    installed = {"site-packages", "dist-packages"} & set(Path(frame.file).parts)
    return not (installed or frame.file.startswith(("<", *_NOT_THE_USERS)))
