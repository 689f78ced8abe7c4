"""What a training tells TensorBoard, written as it goes."""

from __future__ import annotations

import atexit
import operator
import re
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptools.errors import UsageError
from ptools.replica import unwrapped

if TYPE_CHECKING:
    from ptools.train.run_file import RunFile

_SECONDS = 10.0  # that numbers of a device wait at most while others are logged
_TAG = re.compile(r"[\w./-]+")


class Log:
    """Curves, histograms and pictures in a folder, which `tensorboard --logdir` shows as a run.

    Only the main process writes; for the others each call returns at once. What is logged is in
    the file when the call returns, except for tensors on a device: waiting for each of them would
    drain its queue, so they are read together every 10 seconds, by `flush`, and at exit.

    Steps count one thing and never go back, but by `load_state_dict`: TensorBoard leaves out then
    what was logged after the checkpoint. A new log in an old folder replaces the curves there
    from its first step on.

    Args:
        is_main: whether this process writes.

    Raises:
        UsageError: by each method that logs, if a step is no whole number or goes back, a name has
            spaces, or a value is no number.
        PtoolsError: by them, if the folder cannot be written to.

    Example:
        >>> log = Log("runs/a")
        >>> log(step, loss=loss, lr=0.1)
        >>> log.images(step, "inputs", x[:16])
    """

    def __init__(self, folder: str | Path, is_main: bool = True) -> None:
        self._folder = Path(folder)
        self._is_main = is_main
        self._last = -1  # the last step
        self._begin: int | None = None  # what earlier files hold from this step on is void
        self._has_begun = False  # the file that is open says so
        self._file: RunFile | None = None
        self._waiting: list[tuple[float, int, list[Any]]] = []
        self._has_tensors = False
        self._read = time.monotonic()

    def __call__(self, step: int, **values: float | torch.Tensor) -> None:
        """Add a point to each of several curves: `log(step, loss=loss)`; NaN and inf are shown.

        A name with a slash groups curves: `log(step, **{"train/loss": loss})`.
        """
        if self._is_main:
            points = [(_tag(name), _number(name, value)) for name, value in values.items()]
            self._put(self._next(step), points)

    def histograms(self, step: int, model: nn.Module) -> None:
        """The values of each parameter, and of its gradient where it has one.

        Stepper has cleared the gradients when a step is through. They are there just before:
        `optimizer.register_step_pre_hook(lambda *_: log.histograms(step.steps, net))`.
        """
        if not self._is_main:
            return
        from ptools.train.summaries import histogram

        found, at = [], self._next(step)
        for name, parameter in unwrapped(model).named_parameters():
            found += histogram(f"parameters/{name}", parameter)
            if parameter.grad is not None:
                found += histogram(f"gradients/{name}", parameter.grad)
        self._put(at, found)

    def images(self, step: int, name: str, batch: torch.Tensor, *, normalise: bool = False) -> None:
        """A batch as one picture, in about as many rows as columns.

        Args:
            batch: N x 1 or 3 x H x W, uint8, or floats of which 0 to 1 is shown and the rest cut.
            normalise: show its smallest value as black and its largest as white.
        """
        if self._is_main:
            from ptools.train.summaries import grid, picture

            self._put(self._next(step), [picture(_tag(name), grid(batch, normalise))])

    def figure(self, step: int, name: str, figure: Any) -> None:
        """A figure of matplotlib's, which stays open: `plt.close(figure)` frees it."""
        if self._is_main:
            from ptools.train.summaries import drawn, picture

            self._put(self._next(step), [picture(_tag(name), drawn(figure))])

    def text(self, step: int, name: str, text: str) -> None:
        """A text in Markdown. Its steps are free; before anything else is logged, it waits."""
        if self._is_main:
            from torch.utils.tensorboard.summary import text as summary

            self._put(_whole(step), [*summary(_tag(name), str(text)).value], is_curve=False)

    def hparams(self, values: Mapping[str, Any], **metrics: float | torch.Tensor) -> None:
        """What a training was run with and what came out: its row in the tab HPARAMS.

        Args:
            values: numbers; others are shown as text. `vars(args)` of argparse will do.
            metrics: final ones, which are curves of one point too, as hparam/NAME.
        """
        if not self._is_main:
            return
        from torch.utils.tensorboard.summary import hparams

        shown = {name: _shown(value) for name, value in values.items()}
        points = {f"hparam/{_tag(name)}": _number(name, one) for name, one in metrics.items()}
        row = [value for summary in hparams(shown, points) for value in summary.value]
        self._put(max(0, self._last), [*row, *points.items()], is_curve=False)

    def flush(self) -> None:
        """Wait for the numbers of devices, and write them: before a long time without logging."""
        if self._begin is not None:
            self._write()

    def close(self) -> None:
        """Write what waits, and close the file; done by itself at exit."""
        self._write()
        atexit.unregister(self.close)
        if self._file is not None:
            self._file.close()
            self._file, self._has_begun = None, False
            self._begin = self._last + 1 if self._last >= 0 else None

    def state_dict(self) -> dict[str, int]:
        """The last step; all that was logged until then is in the file."""
        self.flush()
        return {"step": self._last}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind that step; what was logged after it is left out of the curves."""
        self._last = state["step"]
        self._begin, self._has_begun = self._last + 1, False

    def _next(self, step: int) -> int:
        number = _whole(step)
        if number < self._last:
            raise UsageError(
                f"step {number} comes after step {self._last}",
                hint="count all that is logged by one counter, which session.load alone sets back",
            )
        self._last = number
        return number

    def _put(self, step: int, values: list[Any], *, is_curve: bool = True) -> None:
        if self._file is None and not self._waiting:
            atexit.register(self.close)
        if is_curve and self._begin is None:
            self._begin = step
        self._waiting.append((time.time(), step, values))
        self._has_tensors |= any(
            isinstance(one, tuple) and torch.is_tensor(one[1]) for one in values
        )
        if not self._has_tensors or time.monotonic() > self._read + _SECONDS:
            self.flush()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._has_tensors, self._read = False, time.monotonic()
        if not waiting:
            return
        if self._file is None:
            from ptools.train.run_file import RunFile

            self._file = RunFile(self._folder)
        if self._begin is not None and not self._has_begun:
            self._file.begin(self._begin)
            self._has_begun = True
        self._file.add(waiting)


def _whole(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise UsageError(f"step {step!r} is no whole number", hint="log(step, loss=loss)") from None
    if number < 0:
        raise UsageError(f"step {number} is below 0", hint="count steps from 0 or 1")
    return number


def _tag(name: str) -> str:
    if not _TAG.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a curve", hint="use letters, digits, and _ . - /")
    return name


def _number(name: str, value: Any) -> float | torch.Tensor:
    """A number, or the tensor of one that a device is yet to compute."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        # A copy: what the training does to its tensor until it is read must not show.
        return value.item() if value.is_cpu else value.detach().clone()
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, torch.Tensor):
        raise UsageError(
            f"{name} is a tensor of shape {tuple(value.shape)}, no number", hint=f"{name}.mean()"
        )
    raise UsageError(f"{name} is {value!r}, no number", hint=f"log.text(step, {name!r}, ...)")


def _shown(value: Any) -> float | str:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else str(value)
