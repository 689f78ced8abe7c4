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
            advance(now.bytes - done, text, now.total_bytes)
            done = now.bytes

        yield show
