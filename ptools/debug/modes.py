"""The modes by name."""

from __future__ import annotations

from ptools.debug.clock import Clock
from ptools.debug.job import Job
from ptools.debug.mode import Log, Mode
from ptools.debug.modules import Modules
from ptools.debug.nan import Nan
from ptools.debug.watch import Watch


def mode_of(job: Job, log: Log) -> Mode:
    """The mode that a job asks for."""
    rest = log, Clock(), Modules()
    match job.mode:
        case "watch":
            return Watch(*rest)
        case "nan":
            return Nan(*rest, start=job.start)
    raise AssertionError(job.mode)
