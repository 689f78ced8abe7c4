"""What was recorded, as a page."""

from __future__ import annotations

import shlex

from rich.console import Group, RenderableType
from rich.text import Text

from ptools.console import counted, escaped
from ptools.files import human_bytes
from ptools.repro.fingerprints.against import Recorded


def page(recorded: Recorded) -> RenderableType:
    """How to compare with it, and what it holds."""
    what = [
        counted(recorded.steps, "step"),
        f"{counted(recorded.operations, 'operation')} one by one",
        f"{recorded.beats:,} points (batches, losses, states)",
    ]
    told = f"recorded {recorded.record}: {', '.join(what)}, {human_bytes(recorded.nbytes)}"
    module = ["-m"] if recorded.module else []
    words = shlex.join([recorded.record, *module, recorded.program, *recorded.arguments])
    how = f"compare with it: ptools repro --against {words}"
    return Group(
        Text(escaped(how), overflow="fold"), Text(escaped(told), style="bold", overflow="fold")
    )
