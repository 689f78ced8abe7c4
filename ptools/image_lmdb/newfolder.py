"""A folder that gets its name when it is complete."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptools.errors import PtoolsError, UsageError
from ptools.files import sync

MARKER = ".ptools-unpack"  # in a folder that is not complete: it is ours


@contextmanager
def new_folder(output: Path, inputs: Path) -> Iterator[Path]:
    """Give OUTPUT.part to fill; it takes the name OUTPUT when the block ends without an error.

    What an interrupted run has left is still in it.

    Raises:
        UsageError: OUTPUT is there already, or OUTPUT.part is none of ours.
        PtoolsError: it cannot be written, or another process is writing it.
    """
    output = output.absolute()
    part = output.with_name(output.name + ".part")
    _check_output(output, inputs)
    try:
        with _marked(part):
            yield part
            os.sync()  # once for all files: a call for each takes far longer than writing them
            (part / MARKER).unlink()
            part.rename(output)
        sync(output.parent)
    except OSError as error:
        place = os.fsdecode(error.filename or part)
        raise PtoolsError(
            f"cannot write {place}: {error.strerror}",
            hint="mend that and run the same command again: what is complete is kept",
        ) from error


def _check_output(output: Path, inputs: Path) -> None:
    if not output.parent.is_dir():
        hint = f"make it with: mkdir -p {output.parent}"
        raise UsageError(f"there is no folder {output.parent}", hint)
    empty = output.is_dir() and not output.is_symlink() and not any(output.iterdir())
    if os.path.lexists(output) and not empty:
        raise UsageError(f"{output} already exists", "give another name with -o")
    if output.resolve().is_relative_to(inputs.resolve()):
        raise UsageError(f"{output} lies inside of {inputs}", "give another place with -o")


@contextmanager
def _marked(part: Path) -> Iterator[None]:
    """Make a folder with our marker, or take over one, and hold it against other processes."""
    marker = part / MARKER
    ours = part.is_dir() and not part.is_symlink()
    if os.path.lexists(part) and not (ours and (marker.is_file() or not any(part.iterdir()))):
        raise UsageError(f"{part} is in the way, and ptools did not make it", "move it away")
    part.mkdir(exist_ok=True)
    with marker.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{part} is being written by another process"
            raise PtoolsError(message, "wait for it, or stop it first") from None
        yield
