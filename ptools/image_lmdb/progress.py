"""How far a long work is: counted often, told a few times a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

_EVERY = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Progress:
    """One message of a work under way."""

    phase: str  # "listing", "packing", "verifying" ...
    images: int
    bytes: int
    total_images: int | None = None
    total_bytes: int | None = None


Listener = Callable[[Progress], None]


class Meter:
    """Counts for one phase and tells a listener."""

    def __init__(
        self,
        listener: Listener | None,
        phase: str,
        total_images: int | None = None,
        total_bytes: int | None = None,
    ) -> None:
        self._listener = listener
        self._phase = phase
        self._totals = total_images, total_bytes
        self.images = self.bytes = 0
        self._due = 0.0

    def add(self, images: int, nbytes: int) -> None:
        """Count what was done since the last call."""
        self.images += images
        self.bytes += nbytes
        if self._listener is not None and (now := time.monotonic()) >= self._due:
            self._due = now + _EVERY
            self._listener(Progress(self._phase, self.images, self.bytes, *self._totals))
