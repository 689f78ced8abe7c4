"""Where each process was: what faulthandler wrote into its `stack_RANK.txt`."""

import linecache
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ptools.launcher.failures import is_users
from ptools.launcher.records import Failure, Frame

_THREAD = re.compile(r"(Thread 0x.*|Current thread 0x.*|Stack )\(most recent call first\):")
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_ESCAPE = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")
_FATAL = "Fatal Python error: "
# Between a call in the user's code and what it calls: decorators, and the way into a module.
_PASSED_THROUGH = {
    "wrapper",
    "inner",
    "__call__",
    "_fn",
    "_call_impl",
    "_wrapped_call_impl",
    "decorate_context",
}
_WORKER = str(Path(__file__).with_name("worker.py"))
_LOG_TAIL = 1 << 16  # bytes
_TERMINATED = re.compile(
    r"terminate called after throwing an instance of '(?:\w+::)*(\w+)'\s+what\(\): +(.+)"
)


@dataclass(frozen=True)
class Stack:
    """The main thread at one moment; of a fatal error the thread that it was in."""

    frames: tuple[Frame, ...]  # innermost first
    fatal: str | None = None  # "Segmentation fault"; None if the process was only asked


def last_stack(file: Path) -> Stack | None:
    """The last dump of a file; None if there is none.

    The format is that of CPython's `_Py_DumpTracebackThreads`: threads are parted by empty lines
    and the main thread is the last; a further dump follows without an empty line.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    stack, before = None, "?"
    for number, line in enumerate(lines):
        if line.startswith(_FATAL):
            stack = Stack((), line.removeprefix(_FATAL))
        elif _THREAD.match(line):
            fatal = stack.fatal if stack and not before else None
            # Of a fatal error the thread that it was in, which may not be the main one.
            if not (fatal and line.startswith("Thread")):
                stack = Stack(tuple(_frames(lines[number + 1 :])), fatal)
        before = line
    return stack


def _frames(lines: list[str]) -> Iterator[Frame]:
    for line in lines:
        match = _FRAME.fullmatch(line)
        if match is None:
            return
        file, number = _unescaped(match["file"]), int(match["line"])
        yield Frame(file, number, match["function"], linecache.getline(file, number).strip())


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[0][2:], 16)), text)


def where(stack: Stack) -> str | None:
    """The innermost line in the user's own code and what it calls there.

    As in "train.py:6 in step (in all_reduce)"; of no user's code, the innermost line.
    """
    if not stack.frames:
        return None
    frame = next((frame for frame in stack.frames if is_users(frame)), stack.frames[0])
    below = stack.frames[: stack.frames.index(frame)]
    called = (one.function for one in reversed(below) if one.function not in _PASSED_THROUGH)
    inside = next(called, None)
    return f"{place(frame)} in {frame.function}" + (f" (in {inside})" if inside else "")


def has_begun(stack: Stack) -> bool:
    """Whether it is in the program, and not only in what starts that."""
    return any(is_users(frame) or _starts(frame) for frame in stack.frames)


def _starts(frame: Frame) -> bool:
    return frame.function == "_run" and frame.file == _WORKER


def place(frame: Frame) -> str:
    """The file and line; the file as seen from the current folder if it lies below that."""
    inside = Path(frame.file).is_relative_to(Path.cwd())
    return f"{os.path.relpath(frame.file) if inside else frame.file}:{frame.line}"


def with_stack(failure: Failure, folder: Path) -> Failure:
    """A process that died without a traceback, with the line it was at and what C++ said."""
    if failure.frames or failure.how != "killed":
        return failure
    stack = last_stack(folder / f"stack_{failure.rank}.txt")
    if stack is not None and stack.fatal:
        failure = replace(failure, frames=stack.frames[::-1])
    if failure.exit_code == 134 and (said := _TERMINATED.search(_end_of_log(failure, folder))):
        failure = replace(failure, type=said[1], message=said[2])
    return failure


def _end_of_log(failure: Failure, folder: Path) -> str:
    try:
        with (folder / f"rank_{failure.rank}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL))
            return log.read().decode(errors="replace")
    except OSError:
        return ""
