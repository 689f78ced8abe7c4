"""What runs in the process of `ptools seed`: `main`, with `SEED MODE script|module NAME ...`.

Each generator is seeded before the program can use it; nothing of torch is imported before.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, cast

from ptools import script
from ptools.imports import after_import
from ptools.program.tracebacks import clear
from ptools.repro.seeding.flags import set_flags, undone
from ptools.repro.seeding.nondeterministic import Collected, refusal
from ptools.repro.seeding.reseeding import Reseeding
from ptools.repro.seeding.unseeded import seed_unseeded
from ptools.repro.seeding.workers import seed_all_workers

if TYPE_CHECKING:
    from ptools.repro.seeding.flags import Mode

_ROOM = os.path.dirname(__file__) + os.sep  # noqa: PTH120


def main() -> None:
    """Seed, and run what the arguments name."""
    seed, mode, kind, name, *arguments = sys.argv[1:]
    atexit.register(prepare(int(seed), cast("Mode", mode)))
    try:
        (script.run_module if kind == "module" else script.run_script)(name, arguments)
    except BaseException as error:
        clear(error, _ROOM)
        _show_as_it_is(error)
        raise


def prepare(seed: int, mode: Mode) -> Telling:
    """Seed this process and those it will fork; what tells at the end how that went."""
    script.seed(seed)
    seed_unseeded(seed)
    after_import("torch.utils.data.dataloader", partial(seed_all_workers, mode=mode))
    after_import("torch", partial(set_flags, mode=mode))
    telling = Telling(mode)
    telling.reseeding.watch()
    if mode == "warn":
        telling.collected.begin()
    return telling


class Telling:
    """Says on stderr, when the program is through, what could not be set."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.reseeding = Reseeding()
        self.collected = Collected()
        self._pid = os.getpid()

    def __call__(self) -> None:
        if os.getpid() == self._pid and sys.stderr is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more
                sys.stderr.write("".join(f"{line}\n" for line in self.lines()))
                sys.stderr.flush()

    def lines(self) -> list[str]:
        """What there is to say."""
        found = []
        if own := self.reseeding.lines():
            found.append(f"the program seeds itself from there on: {'; '.join(own)}")
        if changed := undone(self.mode):
            found.append(f"the program has set {'; '.join(changed)}: remove it, runs may differ")
        if collected := self.collected.lines():
            found += ["without a deterministic version, so runs may differ:", *collected]
        return found


def _show_as_it_is(error: BaseException) -> None:
    """Have Python show an error without our frames, and what to do about it if we know."""
    hook, traceback = sys.excepthook, error.__traceback__

    def show(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        hook(kind, value.with_traceback(traceback), traceback)
        if told := refusal(value):
            sys.stderr.write(f"{told}\n")

    sys.excepthook = show
