"""The bar over listing and packing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ptools import console
from ptools.cli.lmdb_progress import bar
from ptools.image_lmdb.progress import Progress


def test_the_bar_shows_the_share_of_the_bytes_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, float | None]] = []

    @contextmanager
    def progress(description: str, total: float | None = None) -> Iterator[console.Advance]:
        def advance(
            amount: float = 1, description: str | None = None, total: float | None = None
        ) -> None:
            shown.append((amount, total))

        yield advance

    monkeypatch.setattr(console, "has_progress", lambda: True)
    monkeypatch.setattr(console, "progress", progress)
    with bar() as tell:
        assert tell is not None
        tell(Progress("listing", 5, 700))
        tell(Progress("listing", 9, 1000))
        tell(Progress("packing", 1, 100, 9, 1000))
        tell(Progress("packing", 4, 400, 9, 1000))
    assert sum(amount for amount, _ in shown) == 400
    assert shown[-1][1] == 1000
