"""The user's lines that take in what may differ from run to run: noted where it is drawn.

The first tensor that differs shows where such a value entered torch, which may be far from here.
Nothing of torch or NumPy is imported: what they offer is watched when the program imports them.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from ptools.imports import after_import
from ptools.program.callers import is_ours, own_frame, package_of, place_at
from ptools.program.places import Place, place_from
from ptools.repro.suspects.sources import SOURCES, Source, digest, draws, shown
from ptools.repro.suspects.watched import WRAPPER, Watched, watch

FILE = "workers.jsonl"
_EACH = 16  # calls of which each is kept for comparison; then those numbered by a power of two
_CHILDREN = 32  # processes that write: workers started anew in each epoch do as the first did
_UNREAD = {"clock", "pid", "entropy"}  # another value each time: not worth a digest
_SHOWN = {"seed", "network"}


@dataclass(frozen=True)
class Suspect:
    """A line of the user's that took in a value from outside torch.

    Args:
        kind: `clock`, `pid`, `entropy`, `seed` (a seeding call with a value), `python` or `numpy`
            (a draw from the global generator), `network`, `stdin` or `listing`.
        what: the function, as a person types it.
        value: a digest of all that was taken in; the first seed or host as text.
        count: calls.
        position: events that were recorded when it was first called.
        history: number, position and digest so far of some calls, the first ones among them.
        through: the package that the line called, if that called the function.
        seeded: whether the generator had been seeded in this process when it first drew.
        process: the child process that it was noted in, the same in each run; empty for the main.
    """

    kind: str
    what: str
    place: Place
    value: str
    count: int
    position: int
    history: tuple[tuple[int, int, int], ...] = ()
    through: str = ""
    seeded: bool = False
    process: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `suspect_from` reads it."""
        return asdict(self)


def suspect_from(told: Mapping[str, Any]) -> Suspect:
    """A suspect from its JSON."""
    history = tuple((count, position, crc) for count, position, crc in told["history"])
    return Suspect(**{**told, "place": place_from(told["place"]), "history": history})


class Suspects:
    """Notes what a process takes in, while `installed`.

    A forked child goes on on its own: what it takes in is appended to a file in `folder`, which
    `suspects_in` reads.

    Args:
        position: how many events have been recorded.
        folder: without one, children are not noted.
        process: the name of the child process that this is, if it is one.
    """

    def __init__(
        self, position: Callable[[], int], folder: Path | None = None, process: str = ""
    ) -> None:
        self.position = position
        self.seeded: set[str] = set()
        self._folder = None if folder is None else folder.resolve()
        self._process = process
        self._active = False
        self._forks = 0
        self._notes: list[_Note] = []
        self._watched: list[Watched] = []
        self._undo: list[Callable[[], None]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch within the block, and put all functions back."""
        self.install()
        os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)
        try:
            yield
        finally:
            self._active = False
            while self._undo:
                self._undo.pop()()
            self._forget()

    def install(self) -> None:
        """Watch until the process ends."""
        self._active = True
        for module in dict.fromkeys(module for module, _ in SOURCES):
            after_import(module, self._watch_module)

    def told(self) -> list[Suspect]:
        """What was noted in this process, in the order of the first calls."""
        return [note.told(self._process) for note in self._notes]

    def note_at(self, watched: Watched, frame: FrameType, value: Any) -> _Note | None:
        """The note for the line that calls from `frame`; None if it is not the user's doing."""
        source = watched.source
        if not self._active or is_ours(frame.f_code.co_filename):
            return None
        if source.kind == "seed" and package_of(frame) == "torch":
            return None  # a sampler's or a worker's: torch drew that seed itself
        found, through = own_frame(frame, past=WRAPPER)
        if found is None:
            return None
        site = id(found.f_code), found.f_lasti
        note = watched.sites.get(site)
        if note is None:
            kind = "entropy" if source.kind == "seed" and value is None else source.kind
            note = watched.sites[site] = _Note(self, source, kind, found, through)
            self._notes.append(note)
        return note

    def write(self, note: _Note) -> None:
        """In a child process: tell how far a line has come, since it may be killed any time."""
        if self._process and self._folder is not None:
            line = json.dumps({"pid": os.getpid(), **note.told(self._process).to_dict()}) + "\n"
            # A disk that is full must not change how a program ends.
            with suppress(OSError), (self._folder / FILE).open("ab", buffering=0) as file:
                file.write(line.encode())

    def _watch_module(self, module: ModuleType) -> None:
        if not self._active:
            return
        sources = [source for name, source in SOURCES if name == module.__name__]
        if module.__name__ in ("random", "numpy.random"):
            sources += draws(module)
        for source in sources:
            *parts, name = source.path.split(".")
            owner = functools.reduce(getattr, parts, module)
            if owner is not None and hasattr(owner, name):  # there may be no stdin
                self._watch(source, owner, name)

    def _watch(self, source: Source, owner: Any, name: str) -> None:
        watched, undo = watch(self, source, owner, name)
        self._watched.append(watched)
        self._undo.append(undo)
        if watched.original in os.supports_fd:  # shutil.rmtree asks whether os.scandir does
            os.supports_fd.add(watched)
            self._undo.append(functools.partial(os.supports_fd.discard, watched))

    def _before_fork(self) -> None:
        self._forks += 1

    def _after_fork(self) -> None:
        here = self.position() if self._active else 0
        self._process = f"{self._process}.{self._forks}".strip(".")
        self._active &= self._folder is not None and self._forks <= _CHILDREN
        self._forks, self.position = 0, lambda: here
        self._forget()

    def _forget(self) -> None:
        for watched in self._watched:
            watched.sites.clear()


class _Note:
    """What one line took in by one function."""

    __slots__ = ("chain", "code", "count", "history", "kind", "offset", "rest", "suspects", "text")

    def __init__(
        self, suspects: Suspects, source: Source, kind: str, frame: FrameType, through: str
    ) -> None:
        self.suspects, self.kind = suspects, kind
        self.code: CodeType = frame.f_code  # kept, so that nothing else gets its id
        self.offset = frame.f_lasti
        self.rest = source.what, through, kind in suspects.seeded
        self.count = self.chain = 0
        self.text = ""
        self.history: list[tuple[int, int, int]] = []

    def add(self, value: Any) -> None:
        self.count = count = self.count + 1
        if self.kind in _SHOWN:
            text = shown(value)
            self.text = self.text or text
            self.chain = hash((self.chain, digest(text)))
        elif self.kind not in _UNREAD:
            self.chain = hash((self.chain, digest(value)))
        if count <= _EACH or not count & (count - 1):
            self.history.append((count, self.suspects.position(), self.chain))
            self.suspects.write(self)

    def told(self, process: str) -> Suspect:
        what, through, seeded = self.rest
        value = self.text or (f"{self.chain & 0xFFFFFFFF:08x}" if self.chain else "")
        place, position = place_at((self.code, self.offset)), self.history[0][1]
        history = tuple(self.history)
        return Suspect(
            self.kind, what, place, value, self.count, position, history, through, seeded, process
        )


class Noting:
    """A DataLoader's `worker_init_fn` that notes what the worker takes in, also a spawned one.

    The worker has imported the dataset's module by then: a function that it took out of another
    module (`from random import random`) is not seen there.
    """

    def __init__(self, worker_init_fn: Callable[[int], Any] | None, folder: Path) -> None:
        self._worker_init_fn = worker_init_fn
        self._folder = folder

    def __call__(self, worker_id: int) -> None:
        if not isinstance(os.getpid, Watched):  # a forked worker is noted already
            suspects = Suspects(lambda: 0, self._folder, f"worker {worker_id}")
            suspects.seeded |= {"python", "numpy", "torch"}  # by torch, as it started the worker
            suspects.install()
        if self._worker_init_fn is not None:
            self._worker_init_fn(worker_id)


def suspects_in(folder: Path) -> list[Suspect]:
    """What the child processes of a run took in; of workers of one name those of the first."""
    file = folder / FILE
    found: dict[tuple[object, ...], Suspect] = {}
    first: dict[str, int] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError):  # written by halves, when the disk was full
            told = json.loads(line)
            pid = told.pop("pid")
            suspect = suspect_from(told)
            if first.setdefault(suspect.process, pid) == pid:
                found[suspect.process, suspect.kind, suspect.what, suspect.place] = suspect
    return list(found.values())
