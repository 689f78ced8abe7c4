import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb import merge as module
from ptools.image_lmdb.database import Database
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.errors import NotADatabase
from ptools.image_lmdb.merge import merge
from ptools.image_lmdb.verify import verify


@pytest.fixture
def halves(images: Callable[..., Path], folder: Path) -> tuple[Path, Path]:
    """Two sets: the first class in one, the last in the other, the middle one's images in both."""
    source = images(each=6)
    for number, names in enumerate((("class 0", "class 1"), ("class 1", "class 2"))):
        for name in names:
            for index, file in enumerate(sorted((source / name).iterdir())):
                if name != "class 1" or index % 2 == number:
                    copy = folder / f"half{number}" / name / file.name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, copy)
    for number in (0, 1):
        pack_lmdb(f"half{number}", f"half{number}.lmdb")
    return Path("half0.lmdb"), Path("half1.lmdb")


def everything(path: str | Path) -> set[tuple[str, str, bytes]]:
    database = Database(path)
    stored = database.fetch(range(len(database)))
    names = [database.classes[one.label] for one in stored]
    return set(zip(database.paths(), names, (one.data for one in stored), strict=True))


def test_classes_meet_by_name(halves: tuple[Path, Path], torchvision: Any) -> None:
    report = merge(halves, "whole.lmdb")
    truth = torchvision.datasets.ImageFolder("imgs")
    assert list(Database("whole.lmdb").classes) == truth.classes
    assert everything("whole.lmdb") == {
        (os.path.relpath(path, "imgs"), truth.classes[label], Path(path).read_bytes())
        for path, label in truth.samples
    }
    assert (report.images, report.classes, report.shards) == (len(truth), 3, 2)
    assert (report.duplicates, report.skipped) == (0, 0)
    assert report.to_dict()["paths"] == ["half0.lmdb", "half1.lmdb"]
    assert verify("whole.lmdb", against="imgs").ok


def test_files_are_copied_byte_for_byte(halves: tuple[Path, Path]) -> None:
    merge(halves, "whole.lmdb")
    for number, half in enumerate(halves):
        copy = Path("whole.lmdb") / f"data-{number:05d}.mdb"
        assert copy.read_bytes() == (half / "data.mdb").read_bytes()


def test_files_are_copied_without_help_of_the_system(
    halves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    merge(halves, "whole.lmdb")
    assert verify("whole.lmdb", against="imgs").ok


def test_merged_sets_can_be_merged_again(halves: tuple[Path, Path]) -> None:
    merge(halves, "whole.lmdb")
    report = merge(["whole.lmdb", halves[0]], "more.lmdb")
    assert (report.shards, report.duplicates) == (3, 9)
    assert verify("more.lmdb").ok


def test_one_file_of_a_set_can_be_merged(halves: tuple[Path, Path]) -> None:
    merge([halves[0] / "data.mdb"], "copy.lmdb")
    assert everything("copy.lmdb") == everything(halves[0])


def test_lists_of_what_was_skipped_are_joined(images: Callable[..., Path], folder: Path) -> None:
    for number in (0, 1):
        source = images(f"imgs{number}")
        (source / "class 0" / f"bad{number}.jpg").write_bytes(b"no image")
        pack_lmdb(source, f"set{number}.lmdb")
    assert merge(["set0.lmdb", "set1.lmdb"], "both.lmdb").skipped == 2
    lines = (folder / "both.lmdb/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["class 0/bad0.jpg", "class 0/bad1.jpg"]


def test_an_output_that_exists_is_refused_unless_forced(
    halves: tuple[Path, Path], images: Callable[..., Path], folder: Path
) -> None:
    pack_lmdb(images("other"), "whole.lmdb")
    before = everything("whole.lmdb")
    with pytest.raises(UsageError, match="already exists"):
        merge(halves, "whole.lmdb")
    assert everything("whole.lmdb") == before
    assert merge(halves, "whole.lmdb", force=True).images == len(everything("whole.lmdb"))
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        merge(halves, "mine", force=True)
    assert (folder / "mine" / "thesis.txt").exists()


def test_a_set_is_not_merged_into_itself(halves: tuple[Path, Path]) -> None:
    before = everything(halves[0])
    for output in (halves[0], Path.cwd() / ".." / Path.cwd().name / halves[0]):
        with pytest.raises(UsageError, match="one of the sets"):
            merge(halves, output, force=True)
    with pytest.raises(UsageError, match="one of the sets"):
        merge([halves[0] / "data.mdb"], halves[0], force=True)
    assert everything(halves[0]) == before


def test_what_is_no_whole_set_is_refused(halves: tuple[Path, Path], folder: Path) -> None:
    with pytest.raises(NotADatabase):
        merge([halves[0], "imgs"], "whole.lmdb")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([], "whole.lmdb")
    (halves[1] / "data.mdb").write_bytes((halves[1] / "data.mdb").read_bytes()[:-1])
    with pytest.raises(PtoolsError, match="bytes"):
        merge(halves, "whole.lmdb")
    assert not (folder / "whole.lmdb").exists()
    assert not (folder / "whole.lmdb.part").exists()


def test_what_a_killed_merge_left_is_replaced(halves: tuple[Path, Path], folder: Path) -> None:
    (folder / "whole.lmdb.part/set").mkdir(parents=True)
    (folder / "whole.lmdb.part/set/data-00007.mdb").write_bytes(b"old")
    (folder / "whole.lmdb.part/.data-00008.mdb.part").write_bytes(b"half")
    merge(halves, "whole.lmdb")
    assert verify("whole.lmdb").notes == ()
    assert not (folder / "whole.lmdb.part").exists()


def test_a_full_disk_is_told_before_the_first_byte(
    halves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_space", lambda path: 3)
    with pytest.raises(PtoolsError, match="3 B are free"):
        merge(halves, "whole.lmdb")
