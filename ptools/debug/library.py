"""The debug modes around a block of code, in a script or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ptools.debug.findings import Finding
from ptools.debug.inplace.mode import Inplace
from ptools.debug.mode import Log, Mode, Stop, watching
from ptools.debug.nan.mode import Nan
from ptools.dispatch import uncompiled
from ptools.program.clock import Clock
from ptools.program.modules import Modules


class Found:
    """What was found in a block; print it to read it."""

    def __init__(self, log: Log) -> None:
        self._log = log

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings; empty if there is nothing wrong."""
        return tuple(self._log.findings)

    @property
    def first(self) -> Finding | None:
        """The first finding, which ended the block."""
        return self._log.findings[0] if self._log.findings else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that are no findings."""
        return tuple(self._log.notes)

    def __bool__(self) -> bool:
        return bool(self._log.findings)

    def __str__(self) -> str:
        from rich.console import Console, Group

        from ptools.debug.render import section

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(Group(*map(section, self.findings), *self.notes))
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join(lines).rstrip() or "nothing found"

    __repr__ = __str__


@contextmanager
def find_nan(model: nn.Module | None = None) -> Iterator[Found]:
    """Find the operation that makes the first NaN or infinity that comes to a loss or gradient.

    The block ends at the first finding; what comes after the block goes on. A block without a
    backward is judged at its end. Each operation is checked, which takes several times as long.

    Args:
        model: gives the modules' and parameters' names; found by itself where it is called.

    Example:
        >>> with ptools.find_nan(model) as found:
        ...     loss = model(x).mean()
        ...     loss.backward()
        >>> print(found)
    """
    log, modules = Log(), Modules()
    if model is not None:
        modules.add(model)
    with _block(Nan(log, Clock(), modules, late=True)):
        yield Found(log)


@contextmanager
def find_inplace(model: nn.Module | None = None) -> Iterator[Found]:
    """Find the tensor that was changed in place though backward needs it: both lines.

    Finds what torch raises an error for, and what it misses: writes through `.data`, by a fused
    optimizer, or through NumPy, after which gradients are silently wrong. The block ends at the
    first finding; what comes after the block goes on. Forward and backward both belong in it.

    Args:
        model: gives the modules' and parameters' names; found by itself where it is called.

    Example:
        >>> with ptools.find_inplace() as found:
        ...     model(x).mean().backward()
        >>> print(found)
    """
    log, modules = Log(), Modules()
    if model is not None:
        modules.add(model)
    with _block(Inplace(log, Clock(), modules)):
        yield Found(log)


@contextmanager
def _block(mode: Mode) -> Iterator[None]:
    """Watch a block; a finding of this mode ends the block, and no more."""
    try:
        with uncompiled(), watching(mode):
            yield
    except Stop:
        if not mode.log.findings:  # of another mode, in which this one is
            raise
    finally:
        mode.log.keep_going = True
        mode.finish()
