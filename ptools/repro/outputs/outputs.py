"""Let each run begin from the same files: what one wrote is put aside before the next.

What a run makes or changes below the current folder is moved to a scratch folder beside it, and
what it changed or removed is put back from a copy. In the end the folder is as the first run left
it. A folder that a run made is taken to be its own with all that is in it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EEXIST
from glob import escape
from pathlib import Path

from ptools.repro.outputs.moves import (
    Signature,
    contents,
    exists,
    is_folder,
    move,
    remove,
    signature,
)
from ptools.repro.outputs.records import (
    KEPT,
    OURS,
    Record,
    copy_name,
    elsewhere,
    is_as_before,
    is_told,
    journal,
)

_MADE = "made"  # the folder of what a run wrote
_NAMED = 3  # in a sentence
_ELSEWHERE = "not put aside, since it is outside the current folder (have it written below)"
_ABOUT = """ptools repro has put aside here what runs of a program wrote in
{folder}
NUMBER/made holds what run NUMBER wrote; NUMBER/kept what it changed or removed, as it was before,
under the names that NUMBER/journal.jsonl gives. It is needed only if the comparison was killed.
"""


@dataclass
class _Run:
    number: int
    place: Path
    before: dict[Path, Signature] | None
    removed: list[Path] = field(default_factory=list)  # by the run, and then put back
    left: list[Path] = field(default_factory=list)  # could not be put aside
    wrote: set[Path] = field(default_factory=set)
    done: bool = False

    def aside(self, path: Path, folder: Path) -> Path:
        return self.place / _MADE / path.relative_to(folder)


class Outputs:
    """The files below a folder, over several runs of a program that starts there.

    Args:
        folder: The current one, if not given.
        leaves: In the end the folder is as the first run left it, else as it was before.

        outputs = Outputs()
        try:
            for _ in range(2):
                run(outputs.before())  # the child calls watch_writes with this folder
                outputs.after_run()
        finally:
            outputs.close()
    """

    def __init__(self, folder: Path | None = None, leaves: bool = True) -> None:
        self._leaves = leaves
        self._folder = (folder or Path.cwd()).resolve()
        self._scratch: Path | None = None
        self._runs: list[_Run] = []
        self._told: dict[str, set[Path]] = {}
        self._stays: list[str] = []

    def before(self) -> Path:
        """Call it before each run: the folder for its process's `watch_writes`."""
        if self._scratch is None:
            self._scratch = _new_scratch(self._folder)
            for old in _left_behind(self._scratch):
                self._tell("left of a comparison that was killed, or of one that runs now", old)
        place = self._scratch / str(len(self._runs) + 1)
        for name in (KEPT, _MADE):
            (place / name).mkdir(parents=True)
        now = contents(self._folder, OURS)
        self._runs.append(_Run(len(self._runs) + 1, place, now))
        return place

    def after_run(self) -> None:
        """Call it after each run: the folder is again as it was before it."""
        run = self._runs[-1]
        self._put_aside(run)
        if run is not self._runs[0] and not run.left:
            remove(run.place)

    def close(self) -> None:
        """Leave the folder as the first run left it, wherever the runs were cut off."""
        if self._scratch is None:
            return
        for run in self._runs[self._leaves :]:
            if not run.done:
                self._put_aside(run)
        if self._runs and self._leaves:
            self._put_back(self._runs[0])
        if not self._stays:
            remove(self._scratch)
            self._scratch = None

    @property
    def notes(self) -> list[str]:
        """A sentence for what was written, and for each thing that could not be put right."""
        notes = []
        if self._runs and self._runs[0].wrote:
            first, others = self._runs[0], [run for run in self._runs[1:] if run.done]
            same = others and all(run.wrote == first.wrote for run in others)
            left = "those of run 1 are left" if self._leaves else "none is left"
            notes.append(
                f"{'each run' if same else 'run 1'} wrote {_some(first.wrote, self._folder)}: put "
                f"aside between the runs; {left}"
            )
        for why, paths in self._told.items():
            notes.append(f"{why}: {_some(paths, self._folder)}")
        if self._stays:
            what = "; ".join(self._stays)
            notes.append(f"{self._scratch} stays, since not all could be put back: {what}")
        return notes

    def _put_aside(self, run: _Run) -> None:
        records = journal(run.place)
        for path in filter(exists, elsewhere(run.place)):
            self._tell(_ELSEWHERE, path)
        self._tell_unseen(run, records)
        for path in sorted(records):  # a folder before what is in it
            try:
                self._put_right(run, path, records[path])
            except OSError as error:
                run.left.append(path)
                if not exists(path) and records[path]["what"] != "made":
                    self._stays.append(f"{_shown(path, self._folder)}: {error.strerror}")
                self._tell(f"not put right after run {run.number} ({error.strerror})", path)
        run.done = True

    def _put_right(self, run: _Run, path: Path, record: Record) -> None:
        """One file or folder: what the run left of it aside, what was there before back."""
        what, aside = record["what"], run.aside(path, self._folder)
        if what == "lost":
            if signature(path) != tuple(record["signature"]):
                why = f"changed by run {run.number} and could not be put back ({record['why']})"
                self._tell(why, path)
            return
        if is_as_before(path, record):
            return
        if exists(path) and not exists(aside):
            move(path, aside)
            run.wrote |= {path / file.relative_to(aside) for file in _files(aside)}
        elif what != "made" and not exists(aside) and path not in run.removed:
            run.removed.append(path)
        if what == "folder":
            path.mkdir(record["mode"], parents=True, exist_ok=True)
        elif what == "link" and not exists(path):
            path.symlink_to(record["target"])
        elif what == "kept" and not exists(path):
            move(run.place / KEPT / copy_name(path), path)

    def _put_back(self, first: _Run) -> None:
        """What the first run removed goes again, what it wrote comes back."""
        for path in sorted(first.removed, reverse=True):
            with suppress(OSError):  # a folder into which another program wrote
                path.rmdir() if is_folder(path) else path.unlink()
        of_runs = {path for run in self._runs[1:] for path in run.left}
        records = journal(first.place)
        for path in sorted(records):
            aside, what = first.aside(path, self._folder), records[path]["what"]
            if not exists(aside) or (what == "folder" and is_folder(aside)):
                continue
            try:
                if exists(path) and what == "made" and path not in of_runs:
                    raise FileExistsError(EEXIST, "another program has made it too")
                if exists(path) and is_folder(path) != is_folder(aside):
                    path.rmdir() if is_folder(path) else path.unlink()
                move(aside, path)
            except OSError as error:
                self._stays.append(f"{_shown(path, self._folder)}: {error.strerror}")

    def _tell_unseen(self, run: _Run, records: dict[Path, Record]) -> None:
        """What changed in the folder and is not in the records."""
        now = contents(self._folder, OURS)
        if now is None or run.before is None:
            why = "too many files to see what changes there other than by Python"
            self._tell(why, self._folder)
            return
        seen = {path for path in now.keys() | run.before.keys() if is_told(path, records)}
        ours = {os.fstat(number).st_ino for number in (1, 2)}  # what a shell writes for us
        for path in now.keys() | run.before.keys():
            old, new = run.before.get(path), now.get(path)
            if old == new or path in seen or (new and new[2] in ours):
                continue
            if old:
                self._tell(f"changed during run {run.number}, unseen by us, and not put back", path)
            else:
                who = "by another process or a library"
                self._tell(f"written {who} during run {run.number}, and left", path)

    def _tell(self, why: str, path: Path) -> None:
        if not any(path in paths for paths in self._told.values()):
            self._told.setdefault(why, set()).add(path)


def _new_scratch(folder: Path) -> Path:
    """Beside the folder, where moving costs nothing and no listing shows it, or in /tmp."""
    prefix = f".{folder.name}.{OURS}"
    for parent in (folder.parent, Path(tempfile.gettempdir())):
        same_disk = parent.stat().st_dev == folder.stat().st_dev
        if same_disk and parent != folder and os.access(parent, os.W_OK):
            break
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    (scratch / "README").write_text(_ABOUT.format(folder=folder), encoding="utf-8")
    return scratch


def _left_behind(scratch: Path) -> list[Path]:
    """The folders that earlier comparisons of the same folder had."""
    prefix = scratch.name.rpartition("-")[0]
    others = scratch.parent.glob(f"{escape(prefix)}-*")
    return [other for other in others if other != scratch]


def _files(path: Path) -> Iterator[Path]:
    """A file, or those in a folder."""
    if not is_folder(path):
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _some(paths: Collection[Path], folder: Path) -> str:
    """`a.pt`, or `3 files (a.pt, b.pt, c.pt)`."""
    shown = [_shown(path, folder) for path in sorted(paths)]
    if len(shown) == 1:
        return shown[0]
    more = ", ..." if len(shown) > _NAMED else ""
    return f"{len(shown)} files ({', '.join(shown[:_NAMED])}{more})"


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) and path != folder else path)
