"""An event file, which TensorBoard shows as a run."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ptools.errors import UsageError
from ptools.files import atomic_write


@contextmanager
def event_file(folder: Path) -> Iterator[Callable[..., None]]:
    """A new event file in a folder, as a function that adds an `Event` with the fields it is given.

    The folder is made if need be; the file is there when the block has ended. tensorboard's own
    EventFileWriter would import TensorFlow where that is installed.

    Raises:
        UsageError: the folder cannot be written to.

        with event_file(Path("runs/a")) as add:
            add(step=1, summary=scalar("loss", 0.5))
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard takes no file whose name lacks `tfevents`.
            name = f"events.out.tfevents.{time.time_ns()}.ptools"
            temporary = stack.enter_context(atomic_write(folder / name))
            writer = RecordWriter(stack.enter_context(temporary.open("wb")))
        except OSError as error:
            raise UsageError(
                f"cannot write to {folder}: {error.strerror or error}",
                hint="name a folder that you may write to",
            ) from error
        now = time.time()

        def add(**fields: Any) -> None:
            writer.write(Event(wall_time=now, **fields).SerializeToString())

        add(file_version="brain.Event:2")
        yield add
