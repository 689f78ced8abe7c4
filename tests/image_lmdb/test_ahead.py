"""Reading many files, while a slow disk is asked for the next ones."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.image_lmdb import ahead
from ptools.image_lmdb.ahead import Block, read_ahead
from ptools.image_lmdb.scan import Entry, Notes, entry_of

FILES = 300


@pytest.fixture
def entries(folder: Path) -> list[Entry]:
    for number in range(FILES):
        (folder / f"{number:03}").write_bytes(os.urandom(5000))
    found = [entry_of(str(folder), f"{number:03}", 0, Notes()) for number in range(FILES)]
    return [entry for entry in found if entry is not None]


def asked_and_read(
    folder: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, int]]:
    """What is done to which file, in order."""
    steps: list[tuple[str, int]] = []

    def noted(name: str) -> Callable[..., object]:
        original = getattr(os, name)

        def call(descriptor: int, *rest: int) -> object:
            inode = os.fstat(descriptor).st_ino
            steps.append((name, numbers[inode]))
            return original(descriptor, *rest)

        return call

    numbers = {(folder / entry.path).stat().st_ino: at for at, entry in enumerate(entries)}
    monkeypatch.setattr(os, "posix_fadvise", noted("posix_fadvise"))

    def read(block: Block) -> None:
        steps.extend(("read", numbers[(folder / entry.path).stat().st_ino]) for entry in block)

    blocks = [entries[at : at + 3] for at in range(0, FILES, 3)]
    descriptor = os.open(folder, os.O_RDONLY)
    assert list(read_ahead(descriptor, blocks, read)) == blocks
    os.close(descriptor)
    return steps


def test_a_slow_disk_is_asked_for_every_file_before_it_is_read(
    folder: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_waits", itertools.count().__next__)
    steps = asked_and_read(folder, entries, monkeypatch)
    asked = {number: at for at, (name, number) in enumerate(steps) if name == "posix_fadvise"}
    read = {number: at for at, (name, number) in enumerate(steps) if name == "read"}
    assert asked.keys() == read.keys() == set(range(FILES))
    assert min(read[number] - asked[number] for number in range(FILES)) >= 64


def test_files_in_the_page_cache_are_not_asked_for(
    folder: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_waits", lambda: 7)
    steps = asked_and_read(folder, entries, monkeypatch)
    assert [name for name, _ in steps].count("posix_fadvise") == 66  # until it is known


def test_a_disk_that_becomes_slow_is_noticed(
    folder: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = itertools.chain([7] * 4, itertools.count(8))
    monkeypatch.setattr(ahead, "_waits", waits.__next__)
    steps = asked_and_read(folder, entries, monkeypatch)
    assert {number for name, number in steps if name == "posix_fadvise"} >= set(range(192, FILES))
