"""A progress bar for work on images: rate and time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ptools import console
from ptools.files import human_bytes

if TYPE_CHECKING:
    from ptools.image_lmdb.progress import Progress


@contextmanager
def bar() -> Iterator[Callable[["Progress"], None] | None]:
    """Give what to hand a function that tells its progress; None where nobody would see it."""
    if not console.has_progress():
        yield None
        return
    with console.progress("starting") as advance:
        phase, started, done = "", 0.0, 0

        def show(now: "Progress") -> None:
            nonlocal phase, started, done
            if now.phase != phase:
                phase, started, done = now.phase, time.monotonic(), 0
            seconds = max(time.monotonic() - started, 0.001)
            rate = f"{now.images / seconds:,.0f} images/s, {human_bytes(now.bytes / seconds)}/s"
            text = f"{phase} {now.images:,} images, {rate}"
            # What has no total only pulses: the bar would be full before the work begins.
            moved = 0 if now.total_bytes is None else now.bytes - done
            advance(moved, text, now.total_bytes)
            done += moved

        yield show
