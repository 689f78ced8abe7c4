"""The file of a fingerprint: two members of gzip, lines of JSON in both.

The first is one line: what was recorded, and how. The second is the trace.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ptools import __version__
from ptools.errors import PtoolsError, UsageError
from ptools.files import atomic_write
from ptools.repro.trace import Trace

FORMAT = 1
_DAMAGED = (OSError, EOFError, zlib.error, LookupError, TypeError, ValueError, RecursionError)
_KIND = "fingerprint"  # the key of the format's number
_GZIP = 16 + zlib.MAX_WBITS
_HEADER = 1 << 20  # bytes; a file of somebody else's may unpack to anything


@dataclass(frozen=True)
class About:
    """What was recorded, and how.

    Args:
        program: the script or module; empty if it is not known.
        until: each operation was recorded up to so many beats.
        steps: the program was ended after so many.
        date: as ISO 8601 has it.
        environment: what may make another run differ, by name.
    """

    program: str
    arguments: tuple[str, ...]
    until: int
    steps: int | None
    date: str
    environment: Mapping[str, str] = field(default_factory=dict)


def write_record(path: str | Path, about: About, packed: bytes, force: bool = False) -> None:
    """Write a record, whole or not at all.

    Raises:
        UsageError: the file exists and `force` is not given, or it cannot be placed there.
    """
    with atomic_write(path, force) as temporary:
        temporary.write_bytes(whole(about, packed))


def whole(about: About, packed: bytes) -> bytes:
    """What the file holds."""
    header = {_KIND: FORMAT, "ptools": __version__, **asdict(about)}
    return pack([json.dumps(header) + "\n"]) + packed


def pack(lines: Iterable[str]) -> bytes:
    """A member of the file; the same lines give the same bytes."""
    memory = io.BytesIO()
    with gzip.GzipFile(fileobj=memory, mode="wb", compresslevel=6, mtime=0) as packer:
        packer.writelines(line.encode() for line in lines)
    return memory.getvalue()


def read_record(path: str | Path) -> tuple[About, bytes]:
    """Read a record and check that it is whole.

    Raises:
        UsageError: there is no such file.
        PtoolsError: it is no record, damaged, or of a newer format.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        hint = f"record one: ptools repro --record {path} train.py"
        raise UsageError(f"there is no record {path}", hint=hint) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    header, packed = _split(path, data)
    if header[_KIND] != FORMAT:
        raise PtoolsError(
            f"{path} is of format {header[_KIND]}: a newer ptools wrote it", hint="upgrade ptools"
        )
    try:
        told = {name: header[name] for name in About.__dataclass_fields__}
        about = About(**{**told, "arguments": tuple(told["arguments"])})
        trace = Trace(packed)
        for _ in trace.events():
            pass
    except _DAMAGED as error:
        raise _damaged(path) from error
    if not trace.end.ended:
        raise _damaged(path)
    return about, packed


def _split(path: str | Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and the trace as it is packed."""
    if data[:2] != b"\x1f\x8b":
        raise PtoolsError(f"{path} is no record", hint="give a file that --record wrote")
    try:
        member = zlib.decompressobj(_GZIP)
        header = json.loads(member.decompress(data, _HEADER))
    except (zlib.error, ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(header, dict) or not isinstance(header.get(_KIND), int):
        raise PtoolsError(f"{path} is no record", hint="give a file that --record wrote")
    return header, member.unused_data


def _damaged(path: str | Path) -> PtoolsError:
    return PtoolsError(f"{path} is damaged or not whole", hint="copy or record it again")
