"""Have a context in every thread that the program starts."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


@contextmanager
def in_each_thread(context: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Threads that are started while the block runs, run within the context."""
    start = threading.Thread.start

    @functools.wraps(start)
    def start_within(thread: threading.Thread) -> None:
        run = thread.run

        def run_within() -> None:
            del changed.run  # the thread would hold itself
            with context():
                run()

        changed: Any = thread
        changed.run = run_within
        start(thread)

    owner: Any = threading.Thread
    owner.start = start_within
    try:
        yield
    finally:
        owner.start = start
