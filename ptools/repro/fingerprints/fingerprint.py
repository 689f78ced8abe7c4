"""A fingerprint: what a block of code, or a program, computed, to compare others with."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import traceback
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import IO, TYPE_CHECKING

from ptools.console import counted
from ptools.errors import PtoolsError
from ptools.repro.events import End, Event
from ptools.repro.fingerprints.beside import beside
from ptools.repro.fingerprints.recordfile import About, read_record, write_record
from ptools.repro.fingerprints.surroundings import commit_of, surroundings
from ptools.repro.job import ALWAYS, Job
from ptools.repro.trace import Trace, TraceWriter
from ptools.repro.verdict import Verdict

if TYPE_CHECKING:
    from ptools.repro.recording.recorder import Recorder


class Fingerprint:
    """Records what a block computes: batches, losses, states, and by default each operation.

    Of a tensor a digest of its bits is kept and a few of its numbers, so that a fingerprint can be
    compared bit for bit or within a tolerance. What other threads do is left out. Recording each
    operation makes the block about ten times as slow where it computes little.

    Args:
        exact: record each operation; else only batches, losses, states, and evaluated outputs.

    Example:
        >>> with ptools.Fingerprint() as first:
        ...     train()
        >>> with ptools.Fingerprint() as second:
        ...     train()
        >>> print(first.compare(second))  # None: the same, bit for bit
    """

    def __init__(self, exact: bool = True) -> None:
        self._about = About("", (), ALWAYS if exact else 0, None, "")
        self._packed: bytes | None = None
        self._block: _Block | None = None

    def __enter__(self) -> Fingerprint:
        if self._packed is not None or self._block is not None:
            raise PtoolsError("this fingerprint is taken", hint="make one for each block")
        self._block = _Block(self._about.until)
        self._block.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        assert self._block is not None
        self._packed = self._block.end(error)
        program = sys.argv[0] if sys.argv else ""
        self._about = replace(
            self._about,
            program=program,
            arguments=tuple(sys.argv[1:]),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            environment={**commit_of(program), **surroundings()},
        )
        self._block = None

    @classmethod
    def load(cls, path: str | Path) -> Fingerprint:
        """Read a fingerprint that `save` or `ptools repro --record` wrote.

        Raises:
            PtoolsError: there is none, it is damaged, or of a newer format.
        """
        about, packed = read_record(path)
        loaded = cls()
        loaded._about, loaded._packed = about, packed
        return loaded

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write it to a file, without pickle, whole or not at all.

        Raises:
            UsageError: the file exists and `force` is not given, or it cannot be placed there.
        """
        write_record(path, self._about, self._whole(), force)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that was computed, as hexadecimal digits; not of where it was written."""
        digest = hashlib.sha256()
        for event in self._trace().events():
            bits = [value[:3] for value in event.values]
            digest.update(json.dumps([event.kind, event.name, bits]).encode())
        return digest.hexdigest()

    def compare(self, other: Fingerprint, tolerance: float | None = None) -> Verdict | None:
        """The first difference, self being run A and `other` run B; None if there is none.

        Args:
            tolerance: the relative error that floating-point numbers may have; None: bit for bit.

        Raises:
            PtoolsError: the two were not recorded in the same way.
        """
        if (self._about.until, self._about.steps) != (other._about.until, other._about.steps):
            hint = "give both the same `exact`, and records the same --exact and --steps"
            raise PtoolsError("these fingerprints were not recorded in the same way", hint=hint)
        there, here = self._about.environment, other._about.environment
        traces = self._trace(), other._trace()
        return beside(traces, (there, here), tolerance, _narrow).verdict

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Fingerprint) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        if self._packed is None:
            return "a fingerprint that is not taken"
        trace = self._trace()
        events = sum(1 for _ in trace.events())
        told = [counted(trace.end.steps, "step"), counted(events, "event")]
        return f"fingerprint {self.digest[:12]}: {', '.join(told)}"

    __repr__ = __str__

    def _trace(self) -> Trace:
        return Trace(self._whole())

    def _whole(self) -> bytes:
        if self._packed is None:
            raise PtoolsError(
                "this fingerprint is not taken yet", hint="with ptools.Fingerprint() as run: ..."
            )
        return self._packed


def _narrow(steps: int) -> str:
    return "take both fingerprints with exact=True"


class _Block:
    """A block that is being recorded, into memory."""

    def __init__(self, until: int) -> None:
        self._job = Job("", until=until, numbers=True)
        self._memory = io.BytesIO()
        packer = gzip.GzipFile(fileobj=self._memory, mode="wb", compresslevel=3, mtime=0)
        self._file = io.TextIOWrapper(packer, encoding="utf-8", write_through=False)
        self._writer = _OfThread(self._file)
        self._stack = ExitStack()
        self._recorder: Recorder | None = None

    def begin(self) -> None:
        """Record from now on."""
        from ptools.dispatch import uncompiled
        from ptools.repro.recording.recorder import Recorder

        self._recorder = Recorder(self._writer, self._job)
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            stack.enter_context(self._recorder.recording())
            self._stack = stack.pop_all()

    def end(self, error: BaseException | None) -> bytes:
        """No more; what was recorded."""
        recorder = self._recorder
        assert recorder is not None
        with self._stack:
            if error is None:
                recorder.finish()
        told = "".join(traceback.format_exception_only(error)).strip() if error else ""
        self._writer.end(
            End(
                ended=True,
                watched=True,
                error=told,
                steps=recorder.clock.steps,
                operations=recorder.operations,
                nbytes=recorder.digester.nbytes,
            )
        )
        self._file.close()
        return self._memory.getvalue()


class _OfThread(TraceWriter):
    """Leaves out what threads other than its own tell of: that comes at any moment.

    Operations are those of its own thread, and of a backward that it called.
    """

    def __init__(self, file: IO[str]) -> None:
        super().__init__(file)
        self._thread = get_ident()

    def event(self, event: Event) -> None:
        """Write an event."""
        if event.kind == "op" or get_ident() == self._thread:
            super().event(event)
