"""The modes by name."""

from __future__ import annotations

from ptools.debug.job import Job
from ptools.debug.mode import Log, Mode
from ptools.program.clock import Clock
from ptools.program.modules import Modules


def mode_of(job: Job, log: Log) -> Mode:
    """The mode that a job asks for."""
    rest = log, Clock(), Modules()
    match job.mode:
        case "watch":
            from ptools.debug.watch import Watch

            return Watch(*rest)
        case "nan":
            from ptools.debug.nan.mode import Nan

            return Nan(*rest, start=job.start, at_step=job.at_step)
        case "inplace":
            from ptools.debug.inplace.mode import Inplace

            return Inplace(*rest)
        case "autograd":
            from ptools.debug.gradients.mode import Gradients

            return Gradients(*rest, tensorboard=job.tensorboard)
        case "memory":
            from ptools.debug.memory.mode import Memory

            return Memory(*rest, tensorboard=job.tensorboard)
    raise AssertionError(job.mode)
