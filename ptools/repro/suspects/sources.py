"""What may differ from run to run: the functions that yield it, and a digest of what they yield."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Any

Taken = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]

_ENDS = 8  # elements looked at, from each end of a list
_DEPTH = 2  # of lists in lists
_TEXT = 60
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

# A generator is named after the module that has it.
GENERATORS = {
    "random.seed": "python",
    "np.random.seed": "numpy",
    "torch.manual_seed": "torch",
    "torch.seed": "torch",
    "torch.cuda.manual_seed": "torch",
    "torch.cuda.manual_seed_all": "torch",
}
_NAMES = {
    "clock": """time.time time.time_ns time.perf_counter time.perf_counter_ns time.monotonic
        time.monotonic_ns time.process_time time.process_time_ns datetime.datetime.now
        datetime.datetime.utcnow datetime.date.today""",
    "pid": "os.getpid os.getppid",
    "entropy": """os.urandom secrets.token_bytes secrets.token_hex secrets.token_urlsafe
        secrets.randbelow secrets.randbits secrets.choice uuid.uuid1 uuid.uuid4
        random.SystemRandom.random random.SystemRandom.getrandbits torch.seed
        torch.Generator.seed""",
    "listing": "os.listdir os.scandir",
    "stdin": "builtins.input sys.stdin.read sys.stdin.readline sys.stdin.readlines",
}
_SEEDS = """random.seed random.Random.seed np.random.seed np.random.default_rng torch.manual_seed
    torch.cuda.manual_seed torch.cuda.manual_seed_all torch.Generator.manual_seed"""
# Read only when they are called without the time to convert.
_CONVERSIONS = {"time.localtime": 0, "time.gmtime": 0, "time.ctime": 0, "time.strftime": 1}
_NO_DRAWS = {"seed", "getstate", "setstate", "get_state", "set_state"}

NOTHING = object()  # is taken from a call that reads nothing


@dataclass(frozen=True)
class Source:
    """A function to watch, by the path from its module, and what a call of it takes in."""

    kind: str
    what: str
    path: str
    taken: Taken


def _result(arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
    return result


def _first(arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
    return arguments[0] if arguments else next(iter(named.values()), None)


def _second(arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
    return _first(arguments[1:], named, result)


def _host(arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
    address = _second(arguments, named, result)
    return address[0] if isinstance(address, tuple) else NOTHING  # the path of a local socket


def _reads_with(count: int) -> Taken:
    def taken(arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
        given = arguments[count] if len(arguments) > count else None
        return NOTHING if given is not None else result

    return taken


def _sources() -> Iterator[tuple[str, Source]]:
    for kind, names in _NAMES.items():
        for what in names.split():
            module, _, path = what.partition(".")
            yield module, Source(kind, what.removeprefix("builtins."), path, _result)
    for what in _SEEDS.split():
        module, _, path = what.replace("np.random", "numpy_random").partition(".")
        taken = _second if path.startswith(("Random.", "Generator.")) else _first
        what = what.removesuffix(".seed") if path.startswith("Random.") else what
        yield module.replace("_", "."), Source("seed", what, path, taken)
    for what, count in _CONVERSIONS.items():
        yield "time", Source("clock", what, what.partition(".")[2], _reads_with(count))
    yield "socket", Source("network", "socket.getaddrinfo", "getaddrinfo", _first)
    yield "socket", Source("network", "socket.connect", "socket.connect", _host)
    # What every bit generator without a seed calls, RandomState() and PCG64() too.
    unseeded = Source("entropy", "np.random.SeedSequence", "bit_generator.randbits", _result)
    yield "numpy.random", unseeded


SOURCES = list(_sources())


def draws(module: ModuleType) -> list[Source]:
    """The functions of `random` or `numpy.random` that draw from its global generator."""
    python = module.__name__ == "random"
    owner = module._inst if python else module.mtrand._rand
    kind, prefix = ("python", "random") if python else ("numpy", "np.random")
    names = [name for name in dir(module) if getattr(_member(module, name), "__self__", 0) is owner]
    names += [] if python else ["sample", "ranf"]  # functions that call one of its methods
    return [
        Source(kind, f"{prefix}.{name}", name, _first if name == "shuffle" else _result)
        for name in names
        if name not in _NO_DRAWS and not name.startswith("_")
    ]


def _member(module: ModuleType, name: str) -> Any:
    return vars(module).get(name)


def digest(value: Any, depth: int = _DEPTH) -> int:
    """A number for what was drawn, the same in each process; objects count by their type."""
    kind = type(value)
    if kind is float or kind is int or kind is bool:
        return hash(value)
    if isinstance(value, str | PurePath):
        return zlib.crc32(str(value).encode(errors="replace"))
    if isinstance(value, bytes | bytearray):
        return zlib.crc32(value)
    if isinstance(value, list | tuple) and depth:
        ends = value if len(value) <= 2 * _ENDS else [*value[:_ENDS], *value[-_ENDS:]]
        return hash((len(value), *(digest(one, depth - 1) for one in ends)))
    if hasattr(value, "dtype") and hasattr(value, "tobytes") and not value.dtype.hasobject:
        return zlib.crc32(value.tobytes())
    return zlib.crc32(kind.__qualname__.encode())


def shown(value: Any) -> str:
    """A seed as text, without what is an address only."""
    text = _ADDRESS.sub("", repr(value))
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}... ({zlib.crc32(text.encode()):08x})"
