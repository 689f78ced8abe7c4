"""A packed set against the folder it was made of, ImageFolder and py-lmdb."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest
from lmdb.verify import verify

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb import batch, run
from ptools.image_lmdb.database import Database
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.packing import pack_shard
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.shard import Shard
from ptools.image_lmdb.store import Store

Images = Callable[..., Path]
Picture = Callable[..., bytes]
Contents = Callable[[Path], dict[str, bytes]]
Stored = Callable[[Path], list[tuple[bytes, bytes]]]
Planned = Callable[..., tuple[Plan, Store]]


def seen_by(database: Database) -> list[tuple[str, int, bytes]]:
    stored = database.fetch(range(len(database)))
    return [(path, *one[::-1]) for path, one in zip(database.paths(), stored, strict=True)]


def seen_by_image_folder(torchvision: Any, root: Path) -> list[tuple[str, int, bytes]]:
    data = torchvision.datasets.ImageFolder(root, allow_empty=True)
    return [
        (os.path.relpath(path, root), label, Path(path).read_bytes())
        for path, label in data.samples
    ]


def key(index: int) -> bytes:
    return index.to_bytes(8, "big")


# What is in a set


@pytest.mark.parametrize("shard_size", [0, 1, 60_000])
def test_a_set_is_what_image_folder_sees(
    shard_size: int, images: Images, picture: Picture, torchvision: Any
) -> None:
    source = images(each=7)
    for name in ["class 1/sub/10.png", "class 1/sub/9.PNG", "class 10/0.jpeg", "A/a b.ppm"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(picture(len(name), 90, "PPM" if "ppm" in name else "PNG"))
    (source / "class 1/notes.txt").write_text("no image")
    report = pack_lmdb(source, "out.lmdb", shard_size=shard_size)
    database = Database("out.lmdb")
    assert seen_by(database) == seen_by_image_folder(torchvision, source)
    assert list(database.classes) == torchvision.datasets.ImageFolder(source).classes
    assert (report.images, report.shards) == (25, {0: 1, 1: 25}.get(shard_size, report.shards))
    assert report.complete
    assert not report.skipped


def test_a_single_shard_is_a_folder_that_lmdb_opens(images: Images) -> None:
    pack_lmdb(images(), "out.lmdb")
    with lmdb.open("out.lmdb", readonly=True, lock=False) as environment:
        assert environment.stat()["entries"] == 12 + 1


def test_keys_count_and_values_are_the_files(images: Images, stored: Stored) -> None:
    source = images(each=50)
    pack_lmdb(source, "out.lmdb")
    *pairs, (last, _) = stored(Path("out.lmdb"))
    files = sorted(source.rglob("*.jpg"))
    assert pairs == [(key(index), file.read_bytes()) for index, file in enumerate(files)]
    assert last == b"\xffmeta"


@pytest.mark.parametrize("shard_size", [0, 100_000])
def test_files_are_sound_and_read_right_when_compacted(shard_size: int, images: Images) -> None:
    source = images(each=120, size=60)
    pack_lmdb(source, "out.lmdb", shard_size=shard_size)
    files = sorted(Path("out.lmdb").glob("*.mdb"))
    assert len(files) == 1 or shard_size
    for file in files:
        assert not verify(str(file))
        copy = Path(f"{file.name}.copy")
        with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment:
            environment.copy(str(copy), compact=True)
        first, second = Shard(file), Shard(copy)
        for index in range(len(first)):
            row, moved = first.row(index), second.row(index)
            assert second.read(moved, index) == first.read(row, index)
            assert first.read(row, index) == (source / first.path_of(row)).read_bytes()


@pytest.mark.parametrize("length", [0, 1, 100, 2020, 2022, 2024, 2048, 4079, 4080, 4081, 9000])
def test_the_size_is_planned_right(length: int, folder: Path, planned: Planned) -> None:
    (folder / "imgs/c").mkdir(parents=True)
    for index in range(4000):
        (folder / f"imgs/c/{index}.jpg").write_bytes(bytes(length))
    plan, store = planned(folder / "imgs", check="none")
    size = pack_shard(plan, 0, store).file_bytes
    assert size <= plan.parts[0].file_bytes <= 1.01 * size + 8 * 4096


def test_two_packs_of_the_same_files_are_the_same(images: Images, contents: Contents) -> None:
    source = images(each=40)
    (source / "class 0/bad.jpg").write_bytes(b"no image")
    elsewhere = Path("elsewhere/copy")
    shutil.copytree(source, elsewhere, copy_function=shutil.copyfile)
    for number, file in enumerate(elsewhere.rglob("*.jpg")):
        os.utime(file, (number, number))
    for shard_size in (0, 60_000):
        for origin, output in ((source, "one.lmdb"), (elsewhere, "two.lmdb")):
            pack_lmdb(origin, output, shard_size=shard_size, force=True)
        assert contents(Path("one.lmdb")) == contents(Path("two.lmdb"))
        assert "skipped.jsonl" in contents(Path("one.lmdb"))


# Bad files


def bad_folder(images: Images) -> Path:
    source = images()
    whole = (source / "class 0/00000.jpg").read_bytes()
    (source / "class 0/empty.jpg").write_bytes(b"")
    (source / "class 1/text.png").write_bytes(b"<html>404</html>")
    (source / "class 1/trunc.jpg").write_bytes(whole[: len(whole) // 2])
    middle = bytearray(whole)
    middle[len(whole) // 2 : -2] = bytes(len(whole) - len(whole) // 2 - 2)
    (source / "class 2/pipe.jpg").unlink(missing_ok=True)
    os.mkfifo(source / "class 2/pipe.jpg")
    (source / "class 2/gone.jpg").symlink_to("nowhere")
    return source


def skipped_lines(output: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (Path(output) / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("check", ["header", "decode"])
def test_bad_files_are_left_out_and_listed(check: Any, images: Images) -> None:
    report = pack_lmdb(bad_folder(images), "out.lmdb", check=check)
    names = {"empty.jpg", "text.png", "trunc.jpg", "pipe.jpg", "gone.jpg"}
    assert {Path(one.path).name for one in report.skipped} == names
    lines = skipped_lines("out.lmdb")
    assert lines == [{"path": one.path, "reason": one.reason} for one in report.skipped]
    assert all(line["reason"] for line in lines)
    assert not names & {Path(path).name for path in Database("out.lmdb").paths()}
    assert report.images == len(Database("out.lmdb")) == 12


def test_without_a_check_only_what_cannot_be_read_is_left_out(images: Images) -> None:
    report = pack_lmdb(bad_folder(images), "out.lmdb", check="none")
    assert {Path(one.path).name for one in report.skipped} == {"pipe.jpg", "gone.jpg"}
    assert report.images == 15


def test_bad_files_are_kept_if_asked(images: Images) -> None:
    source = bad_folder(images)
    report = pack_lmdb(source, "out.lmdb", on_error="keep")
    assert {Path(one.path).name for one in report.skipped} == {"pipe.jpg", "gone.jpg"}
    assert {Path(one.path).name for one in report.kept} == {"empty.jpg", "text.png", "trunc.jpg"}
    for path, _, data in seen_by(Database("out.lmdb")):
        assert data == (source / path).read_bytes()


@pytest.mark.parametrize("bad", ["text.jpg", "pipe.jpg", "gone.jpg"])
def test_the_first_bad_file_is_an_error_if_asked(bad: str, images: Images) -> None:
    path = images() / "class 1" / bad
    if bad == "text.jpg":
        path.write_bytes(b"text")
    elif bad == "pipe.jpg":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(PtoolsError) as caught:
        pack_lmdb(path.parents[1], "out.lmdb", on_error="fail")
    assert str(path) in caught.value.message
    assert not Path("out.lmdb").exists()


def test_a_set_without_bad_files_lists_none(images: Images) -> None:
    source = images()
    bad = source / "class 0/bad.jpg"
    bad.write_bytes(b"")
    pack_lmdb(source, "out.lmdb")
    bad.unlink()
    pack_lmdb(source, "out.lmdb", force=True)
    assert not Path("out.lmdb/skipped.jsonl").exists()


def test_a_set_may_end_up_without_images(folder: Path) -> None:
    (folder / "imgs/c").mkdir(parents=True)
    (folder / "imgs/c/0.jpg").write_bytes(b"bad")
    assert pack_lmdb("imgs", "out.lmdb").images == 0
    assert len(Database("out.lmdb")) == 0


# Files that change after they were listed


def rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"\xff" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def grow(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def shrink(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-4])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES = [rewrite, grow, shrink, Path.unlink, become_a_pipe, become_a_folder]


@pytest.mark.parametrize("check", ["none", "decode"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_it_was_listed_is_left_out(
    change: Callable[[Path], None], check: str, images: Images, planned: Planned
) -> None:
    source = images()
    plan, store = planned(source, check=check, on_error="keep")
    change(source / "class 1/00005.jpg")
    report = pack_shard(plan, 0, store)
    (bad,) = report.skipped
    assert bad.path == "class 1/00005.jpg"
    assert bad.reason
    assert report.images == 11
    assert not verify(str(store.fetch("data.mdb")))


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_is_an_error_if_asked(
    change: Callable[[Path], None], images: Images, planned: Planned
) -> None:
    source = images()
    plan, store = planned(source, on_error="fail")
    change(source / "class 1/00005.jpg")
    with pytest.raises(PtoolsError, match=r"class 1/00005\.jpg: "):
        pack_shard(plan, 0, store)
    assert [path.name for path in store.workspace.rglob("*") if path.is_file()] == ["plan"]


def test_a_file_that_changes_while_it_is_read_is_left_out(
    images: Images, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images()
    victim = source / "class 2/00008.jpg"
    plan, store = planned(source, check="none")
    readv = os.readv

    def read_and_change(descriptor: int, views: Sequence[memoryview]) -> int:
        length = readv(descriptor, views)
        if os.path.samestat(os.fstat(descriptor), victim.stat()):
            rewrite(victim)
        return length

    monkeypatch.setattr(os, "readv", read_and_change)
    assert [one.path for one in pack_shard(plan, 0, store).skipped] == ["class 2/00008.jpg"]


def test_a_source_that_is_gone_is_told_in_a_sentence(images: Images, planned: Planned) -> None:
    source = images()
    plan, store = planned(source)
    source.rename("away")
    with pytest.raises(PtoolsError, match="imgs"):
        pack_shard(plan, 0, store)


def test_few_file_descriptors_are_enough(images: Images) -> None:
    source = images(each=150)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "from ptools.image_lmdb.engine import pack_lmdb\n"
        "print(pack_lmdb(sys.argv[1], 'out.lmdb').images)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "450\n"


# Names


def test_odd_names_come_through(
    images: Images, picture: Picture, torchvision: Any, folder: Path
) -> None:
    odd = ["new\nline", "emoji 🐈", os.fsdecode(b"latin \xe9"), "-rf", "--force", " ", "x" * 251]
    for number, name in enumerate(odd):
        file = folder / "imgs" / name / f"{name}.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(picture(number))
        file.with_name("bad.jpg").write_bytes(b"bad")
    report = pack_lmdb("imgs", "out.lmdb")
    expected = seen_by_image_folder(torchvision, folder / "imgs")
    database = Database("out.lmdb")
    assert seen_by(database) == [one for one in expected if not one[0].endswith("/bad.jpg")]
    assert set(database.classes) == set(odd)
    assert {line["path"] for line in skipped_lines("out.lmdb")} == {f"{n}/bad.jpg" for n in odd}
    assert len(report.skipped) == len(odd)


def test_empty_classes_keep_their_label(images: Images, torchvision: Any) -> None:
    source = images()
    (source / "class 0.5").mkdir()
    report = pack_lmdb(source, "out.lmdb")
    assert Database("out.lmdb").classes == ("class 0", "class 0.5", "class 1", "class 2")
    assert seen_by(Database("out.lmdb")) == seen_by_image_folder(torchvision, source)
    assert any("class 0.5" in note for note in report.notes)


# Made anew


def test_smaller_images_are_made_the_same_each_time(images: Images, contents: Contents) -> None:
    source = images(size=200)
    first = pack_lmdb(source, "one.lmdb", resize_short=32)
    pack_lmdb(source, "two.lmdb", resize_short=32)
    assert contents(Path("one.lmdb")) == contents(Path("two.lmdb"))
    assert first.bytes < first.source_bytes
    assert first.source_bytes == sum(file.stat().st_size for file in source.rglob("*.jpg"))


def test_images_may_become_larger_than_planned(
    images: Images, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images(each=40, size=100)
    monkeypatch.setattr(batch, "recoded", lambda data, _: data * 50)
    pack_lmdb(source, "out.lmdb", quality=99)
    assert not verify("out.lmdb/data.mdb")
    values = [value for _, value in stored(Path("out.lmdb"))][:-1]
    assert values == [50 * file.read_bytes() for file in sorted(source.rglob("*.jpg"))]


def test_a_file_that_comes_in_pieces_is_read_whole(
    images: Images, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, readv = images(size=200), os.readv
    monkeypatch.setattr(os, "readv", lambda file, views: readv(file, [views[0][:999]]))
    pack_lmdb(source, "out.lmdb")
    values = [value for _, value in stored(Path("out.lmdb"))][:-1]
    assert values == [file.read_bytes() for file in sorted(source.rglob("*.jpg"))]


# The destination


def untouched(root: Path) -> dict[str, tuple[int, int]]:
    found = (path.lstat() for path in sorted(root.rglob("*")))
    paths = map(str, sorted(root.rglob("*")))
    return dict(zip(paths, ((one.st_ino, one.st_mtime_ns) for one in found), strict=True))


@pytest.fixture
def refused(folder: Path) -> Iterator[Callable[..., UsageError]]:
    """Call `pack_lmdb`, which must raise a UsageError and change nothing."""

    def call(*arguments: Any, **options: Any) -> UsageError:
        before = untouched(folder)
        with pytest.raises(UsageError) as caught:
            pack_lmdb(*arguments, **options)
        assert caught.value.exit_code == 2
        assert caught.value.hint
        assert untouched(folder) == before
        return caught.value

    yield call


def test_a_set_that_exists_is_only_replaced_if_asked(
    images: Images, refused: Callable[..., UsageError], picture: Picture
) -> None:
    source = images()
    pack_lmdb(source, "out.lmdb", shard_size=1)
    assert "already exists" in refused(source, "out.lmdb").message
    (source / "class 0/new.jpg").write_bytes(picture(99))
    pack_lmdb(source, "out.lmdb", force=True)
    assert len(Database("out.lmdb")) == 13
    assert sorted(path.name for path in Path("out.lmdb").iterdir()) == ["data.mdb", "meta.json"]
    assert sorted(path.name for path in Path().iterdir()) == ["imgs", "out.lmdb"]


def test_a_set_is_replaced_only_if_all_in_it_is_ours(
    images: Images, refused: Callable[..., UsageError]
) -> None:
    source = images()
    pack_lmdb(source, "out.lmdb")
    for name in ["notes.txt", ".hidden", ".draft.part", ".x.tmp", "data.csv", "plan", "old"]:
        (Path("out.lmdb") / name).write_text("mine")
        assert name in refused(source, "out.lmdb", force=True).message
        (Path("out.lmdb") / name).unlink()
    (Path("out.lmdb") / "data-00001.mdb").mkdir()
    refused(source, "out.lmdb", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_is_never_replaced(
    force: bool, images: Images, refused: Callable[..., UsageError]
) -> None:
    source = images()
    Path("file.lmdb").write_text("mine")
    Path("link.lmdb").symlink_to("imgs")
    Path("broken.lmdb").symlink_to("nowhere")
    Path("empty.lmdb").mkdir()
    Path("full.lmdb").mkdir()
    Path("full.lmdb/data.mdb").write_text("mine")
    for output in ["file.lmdb", "link.lmdb", "broken.lmdb", "empty.lmdb", "full.lmdb"]:
        refused(source, output, force=force)


def test_a_backup_beside_the_set_stays(images: Images, contents: Contents) -> None:
    source = images()
    pack_lmdb(source, "out.lmdb")
    Path("out.lmdb").rename("out.lmdb.old")
    before = contents(Path("out.lmdb.old"))
    pack_lmdb(source, "out.lmdb", shard_size=1)
    pack_lmdb(source, "out.lmdb", force=True)
    assert contents(Path("out.lmdb.old")) == before


@pytest.mark.parametrize("foreign", ["notes.txt", "set/notes.txt", "old/notes.txt"])
def test_a_workspace_with_other_files_is_left_alone(
    foreign: str, images: Images, refused: Callable[..., UsageError]
) -> None:
    source = images()
    path = Path("out.lmdb.part") / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert "notes.txt" in refused(source, "out.lmdb").message


def test_a_set_is_not_packed_into_its_source(
    images: Images, refused: Callable[..., UsageError]
) -> None:
    source = images()
    Path("link").symlink_to(source)
    for output in ["imgs", "imgs/out.lmdb", "imgs/class 0/out.lmdb", "link/out.lmdb"]:
        assert "inside" in refused(source, output).message
    assert "inside" in refused("link", "imgs/out.lmdb").message


def test_a_missing_folder_is_named(images: Images, refused: Callable[..., UsageError]) -> None:
    assert "mkdir -p" in str(refused(images(), "no/where/out.lmdb").hint)


def test_a_source_without_images_leaves_nothing_behind(
    folder: Path, refused: Callable[..., UsageError]
) -> None:
    (folder / "empty").mkdir()
    (folder / "texts/c").mkdir(parents=True)
    for source in ["nowhere", "empty", "texts"]:
        refused(source, "out.lmdb")


def test_a_list_is_packed_beside_itself(images: Images) -> None:
    images()
    Path("train.csv").write_text("imgs/class 0/00001.jpg,cat\nimgs/class 2/00009.jpg,dog\n")
    report = pack_lmdb(None, list="train.csv")
    assert Path(report.output) == Path("train.lmdb")
    assert Database("train.lmdb").classes == ("cat", "dog")


def test_a_dry_run_writes_nothing(images: Images, folder: Path) -> None:
    source = images()
    before = untouched(folder)
    report = pack_lmdb(source, dry_run=True, shard_size=1)
    assert untouched(folder) == before
    assert (report.images, report.shards, report.dry_run) == (12, 12, True)


def test_the_space_is_compared_before_anything_is_written(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images()
    monkeypatch.setattr(run, "free_space", lambda path: 3 << 10)
    with pytest.raises(PtoolsError, match=r"needs \d+\.\d\d KiB.*3\.00 KiB are free"):
        pack_lmdb(source, "out.lmdb")
    assert not list(Path().rglob("*.mdb"))


@pytest.mark.parametrize(
    "options", [{"jobs": 0}, {"shard_size": -1}, {"check": "all"}, {"on_error": "Skip"}]
)
def test_options_that_mean_nothing_are_refused(
    options: dict[str, Any], images: Images, refused: Callable[..., UsageError]
) -> None:
    refused(images(), "out.lmdb", **options)


# Progress and memory


def test_progress_ends_at_its_total(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    source, seen = images(), []
    monkeypatch.setattr("ptools.image_lmdb.progress._EVERY", 0.0)
    pack_lmdb(source, "out.lmdb", shard_size=1, progress=seen.append)
    assert (seen[-1].images, seen[-1].bytes) == (seen[-1].total_images, seen[-1].total_bytes)


PEAK = """
import resource, sys
from ptools.image_lmdb.engine import pack_lmdb
pack_lmdb(sys.argv[1], sys.argv[2], check="none", shard_size=2 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_images(folder: Path) -> None:
    peaks = []
    for count in (1000, 10_000):
        root = folder / str(count)
        for index in range(count):
            path = root / f"{index // 500}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d" % index)
        command = [sys.executable, "-c", PEAK, str(root), f"{root}.lmdb"]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 3000  # KiB; a path alone would take a few hundred bytes
