import errno
import fcntl
import filecmp
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from shards import write_shard

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb import unpack as module
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.newfolder import MARKER
from ptools.image_lmdb.unpack import unpack

ODD_NAMES = [
    "new\nline.jpg",
    "🦊.png",
    os.fsdecode(b"caf\xe9.jpg"),
    "-rf.jpg",
    " .jpg",
    "a'\"$b.JPG",
]


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same, to the last byte and empty folder."""
    pair = filecmp.dircmp(one, other, ignore=[], hide=[])
    names = pair.common_files
    match, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
    return (
        not (pair.left_only or pair.right_only or pair.common_funny)
        and len(match) == len(names)
        and all(same(one / name, other / name) for name in pair.common_dirs)
    )


@pytest.fixture
def crafted(folder: Path) -> Callable[..., Path]:
    """One file of a set with any paths: what only a hostile hand writes."""

    def write(*paths: str, contents: tuple[bytes, ...] = ()) -> Path:
        images = zip(contents or [b"image"] * len(paths), paths, [0] * len(paths), strict=True)
        return write_shard(folder / "crafted.mdb", images, ["cat"])

    return write


def test_a_folder_comes_back_as_it_was(images: Callable[..., Path], folder: Path) -> None:
    source = images(each=5)
    (source / "an empty class").mkdir()
    (source / "class 1" / "deep" / "below").mkdir(parents=True)
    shutil.copy(source / "class 1" / "00005.jpg", source / "class 1" / "deep" / "below")
    pack_lmdb(source, "set.lmdb")
    report = unpack("set.lmdb", "back")
    assert same(source, folder / "back")
    assert (report.images, report.files, report.classes, report.kept) == (16, 16, 4, 0)
    assert report.bytes == sum(file.stat().st_size for file in source.rglob("*.jpg"))
    assert report.to_dict()["output"] == "back"
    assert not (folder / "back.part").exists()


def test_odd_names_survive(picture: Callable[..., bytes], folder: Path) -> None:
    for name in (os.fsdecode(b"\xff\xfe"), "-class", "line\nbreak", "🐈"):
        (folder / "imgs" / name).mkdir(parents=True)
        for seed, image in enumerate(ODD_NAMES):
            (folder / "imgs" / name / image).write_bytes(picture(seed))
    pack_lmdb("imgs", "set.lmdb", shard_size=50_000)
    assert unpack("set.lmdb", "back").images == 4 * len(ODD_NAMES)
    assert same(folder / "imgs", folder / "back")


def test_several_shards_come_back(images: Callable[..., Path], folder: Path) -> None:
    source = images(each=20, size=200)
    assert pack_lmdb(source, "set.lmdb", shard_size=150 << 10).shards > 1
    unpack("set.lmdb", "back")
    assert same(source, folder / "back")


def test_labels_of_a_list_make_no_folders(images: Callable[..., Path], folder: Path) -> None:
    source = images(classes=1, each=2)
    paths = sorted(str(file.relative_to(source)) for file in source.rglob("*.jpg"))
    (folder / "list.txt").write_text(f"{paths[0]},dog\n{paths[1]},cat\n")
    pack_lmdb(source, "set.lmdb", list="list.txt")
    unpack("set.lmdb", "back")
    assert same(source, folder / "back")


def test_a_foreign_database_is_unpacked(picture: Callable[..., bytes], folder: Path) -> None:
    opened = lmdb.open("foreign", map_size=1 << 20)
    with opened as environment, environment.begin(write=True) as writing:
        for index in range(5):
            writing.put(f"cat/{index}.jpg".encode(), picture(index))
    assert unpack("foreign", "back").files == 5
    assert (folder / "back/cat/3.jpg").read_bytes() == picture(3)


@pytest.mark.parametrize(
    "path",
    ["/etc/evil.jpg", "../evil.jpg", "a/../../evil.jpg", "a/..", "\0.jpg", "", MARKER, "."],
)
def test_a_path_out_of_the_folder_is_refused(
    path: str, crafted: Callable[..., Path], folder: Path
) -> None:
    (folder / "inside").mkdir()
    with pytest.raises(PtoolsError):
        unpack(crafted("cat/1.jpg", path), "inside/back")
    assert not list(folder.rglob("evil.jpg"))
    assert not (folder / "inside/back").exists()


def test_a_link_in_the_way_is_not_followed(crafted: Callable[..., Path], folder: Path) -> None:
    (folder / "outside").mkdir()
    (folder / "back.part").mkdir()
    (folder / "back.part" / MARKER).touch()
    (folder / "back.part" / "cat").symlink_to(folder / "outside")
    with pytest.raises(PtoolsError, match="is a link"):
        unpack(crafted("cat/1.jpg"), "back")
    assert not list((folder / "outside").iterdir())


def test_a_file_that_is_a_folder_too_is_an_error(crafted: Callable[..., Path]) -> None:
    with pytest.raises(PtoolsError, match="cannot write"):
        unpack(crafted("cat/1.jpg", "cat/1.jpg/2.jpg"), "back")


def test_equal_images_of_one_path_are_written_once(crafted: Callable[..., Path]) -> None:
    report = unpack(crafted("cat/1.jpg", "cat/./1.jpg"), "back")
    assert (report.images, report.files, report.kept) == (2, 1, 0)


def test_different_images_of_one_path_are_an_error(
    crafted: Callable[..., Path], folder: Path
) -> None:
    database = crafted("cat/1.jpg", "cat/1.jpg", contents=(b"one", b"two"))
    with pytest.raises(PtoolsError, match=r"'cat/1.jpg' twice"):
        unpack(database, "back")
    assert not (folder / "back").exists()


def test_a_damaged_image_is_never_written(crafted: Callable[..., Path], folder: Path) -> None:
    database = crafted("cat/1.jpg")
    database.write_bytes(database.read_bytes().replace(b"image", b"imagE", 1))
    with pytest.raises(DamagedDatabase):
        unpack(database, "back")
    assert not (folder / "back").exists()


def test_what_exists_is_never_touched(crafted: Callable[..., Path], folder: Path) -> None:
    (folder / "back").mkdir()
    (folder / "back" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        unpack(crafted("cat/1.jpg"), "back")
    (folder / "other.part").mkdir()
    (folder / "other.part" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="did not make it"):
        unpack("crafted.mdb", "other")
    assert (folder / "back" / "mine").read_text() == "mine"
    assert [file.name for file in (folder / "other.part").iterdir()] == ["mine"]


def test_an_empty_folder_may_be_there(crafted: Callable[..., Path], folder: Path) -> None:
    (folder / "back").mkdir()
    unpack(crafted("cat/1.jpg"), "back")
    assert (folder / "back/cat/1.jpg").read_bytes() == b"image"


def test_the_output_must_have_a_place(images: Callable[..., Path], folder: Path) -> None:
    pack_lmdb(images(), "set.lmdb")
    with pytest.raises(UsageError, match="no folder"):
        unpack("set.lmdb", "not/there")
    with pytest.raises(UsageError, match="inside"):
        unpack("set.lmdb", "set.lmdb/back")


def test_a_full_disk_is_told_before_the_first_file(
    crafted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_space", lambda path: 3)
    with pytest.raises(PtoolsError, match="3 B are free"):
        unpack(crafted("cat/1.jpg"), "back")


def test_a_disk_that_fills_is_an_error_of_ours(
    crafted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "sync", full)
    with pytest.raises(PtoolsError, match="No space left"):
        unpack(crafted("cat/1.jpg"), "back")


def test_a_killed_run_is_continued(images: Callable[..., Path], folder: Path) -> None:
    source = images(each=20)
    pack_lmdb(source, "set.lmdb")
    code = (
        "import os, signal\nfrom ptools.image_lmdb.unpack import unpack\n"
        "stop = lambda at: at.images > 9 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "import ptools.image_lmdb.progress as p; p._EVERY = 0\n"
        "unpack('set.lmdb', 'back', progress=stop)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    part = folder / "back.part"
    (part / "class 0/00001.jpg").write_bytes(b"half")
    damaged = part / "class 0/00002.jpg"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    report = unpack("set.lmdb", "back")
    assert report.kept == 8
    assert same(source, folder / "back")


def test_files_of_another_set_are_not_mixed_in(crafted: Callable[..., Path], folder: Path) -> None:
    (folder / "back.part" / "dog").mkdir(parents=True)
    (folder / "back.part" / MARKER).touch()
    (folder / "back.part" / "dog" / "2.jpg").touch()
    with pytest.raises(PtoolsError, match="not of this set"):
        unpack(crafted("cat/1.jpg"), "back")
    assert (folder / "back.part" / "dog" / "2.jpg").exists()


def test_two_at_once_do_not_meet(crafted: Callable[..., Path], folder: Path) -> None:
    database = crafted("cat/1.jpg")
    (folder / "back.part").mkdir()
    with (folder / "back.part" / MARKER).open("w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(PtoolsError, match="another process"):
            unpack(database, "back")
