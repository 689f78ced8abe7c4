"""An event file that stays open for as long as a training goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError


class RunFile:
    """A new file in a folder, which is made if need be; TensorBoard adds it to those there.

    torch.utils.tensorboard.SummaryWriter hands each event to a thread of its own, and says only
    in the second file of a folder where that one begins, which TensorBoard takes for the first.

    Raises:
        PtoolsError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = folder
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard takes no file whose name lacks `tfevents`, and reads them in this order.
            path = folder / f"events.out.tfevents.{time.time_ns()}.ptools"
            self._file = path.open("xb")
        self._writer: Any = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def begin(self, step: int) -> None:
        """Say that what was logged before from a step on is void."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        for _ in range(2):  # the first START that TensorBoard meets in a folder voids nothing
            self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def add(self, events: Sequence[tuple[float, int, list[Any]]]) -> None:
        """Write events: the second they are from, the step, and messages or (name, number)."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        def message(value: Any) -> Any:
            if not isinstance(value, tuple):
                return value
            return Summary.Value(tag=value[0], simple_value=float(value[1]))

        for second, step, values in events:
            summary = Summary(value=[message(value) for value in values])
            self._write(wall_time=second, step=step, summary=summary)
        with self._explained():
            self._file.flush()

    def close(self) -> None:
        """Write what is left, and close it."""
        with self._explained():
            self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(**{"wall_time": time.time(), **fields})
        with self._explained():
            self._writer.write(event.SerializeToString())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PtoolsError(
                f"cannot write to {self._folder}: {error.strerror or error}",
                hint="log to a folder that you may write to, on a disk with space left",
            ) from error
