"""Objects of Python's own library, read from how they are pickled.

Each function takes the call that would make one; it raises ValueError, TypeError and the like where
the call is not what the library writes.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath

from ptools.checkpoint.pickles.nodes import Call, List, Node, Tuple
from ptools.checkpoint.pickles.numpy_objects import raw_bytes

_MOST_NUMBERS = 1_000_000  # of a range that is written out


def ordered_dict(call: Call) -> Call:
    """As Python 3 writes it: Python 2 gives the pairs as an argument."""
    if not call.args.elements:
        return call
    given = [pair.elements for pair in call.args.elements[0].elements]
    pairs = [(key, value) for key, value in given]
    return Call(call.function, Tuple([]), pairs=[*pairs, *call.pairs], states=call.states)


def deque(call: Call) -> List:
    """The list of what is in it; Python 2 gives that as an argument."""
    given = call.args.elements[0].elements if call.args.elements else []
    return List([*given, *call.elements] if given else call.elements)


def numbers(call: Call) -> List:
    """The list of a range, which is not the same as its three numbers to whoever reads it."""
    written_out = range(*call.args.elements)
    if len(written_out) > _MOST_NUMBERS:
        raise ValueError("a range too long to be written out")
    return List(list(written_out))


def path(call: Call) -> str:
    """A path as text."""
    windows = "Windows" in call.path
    return str((PureWindowsPath if windows else PurePosixPath)(*call.args.elements))


def moment(call: Call) -> str:
    """A datetime, date or time: the class itself reads the bytes that it pickles."""
    kind: Callable[..., datetime.date | datetime.time] = getattr(datetime, call.function.name)
    state, *zone = call.args.elements
    return kind(raw_bytes(state), *map(_zone, zone)).isoformat()


def _zone(node: Node) -> datetime.tzinfo:
    match node:
        case Call(args=Tuple([Call() as offset, *_])) if node.path == "datetime.timezone":
            return datetime.timezone(datetime.timedelta(seconds=seconds(offset)))
    raise ValueError("the time zone's rules are not in the file")


def seconds(call: Call) -> float:
    """A timedelta."""
    return datetime.timedelta(*call.args.elements).total_seconds()


def fraction(call: Call) -> str:
    """`1/3`; before Python 3.12 that is the argument."""
    parts = call.args.elements
    if not all(isinstance(part, str | int) for part in parts):
        raise ValueError("a fraction of something else")
    return "/".join(str(part) for part in parts)
