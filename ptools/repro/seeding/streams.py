"""Streams of seeds: each number follows from those before it, and no two are related."""

from __future__ import annotations

import os
from hashlib import blake2b


def derived(*numbers: int) -> int:
    """A seed of 63 bits that these numbers alone decide."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


class Stream:
    """Seeds one after another, others in each process that is forked.

    The number of a fork decides the seeds of its process, so that they repeat too.
    """

    def __init__(self, root: int) -> None:
        self.begin(root)
        os.register_at_fork(before=self._fork, after_in_child=self._begin_child)

    def begin(self, root: int) -> None:
        """Start anew."""
        self._root, self._taken, self._forks = root, 0, 0

    def take(self) -> int:
        """The next seed."""
        self._taken += 1
        return derived(self._root, 0, self._taken)

    def _fork(self) -> None:
        self._forks += 1

    def _begin_child(self) -> None:
        self.begin(derived(self._root, 1, self._forks))
