import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from shards import write_shard

from ptools.errors import PtoolsError
from ptools.image_lmdb import verify_shard as module
from ptools.image_lmdb.database import Database
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.record import MAGIC, PREFIX_BYTES, ROW_BYTES, STAMP_AT, Row, pack_row
from ptools.image_lmdb.shard import Shard
from ptools.image_lmdb.verify import VerifyReport, verify

Flip = Callable[[int], None]


@pytest.fixture
def packed(images: Callable[..., Path], folder: Path, picture: Callable[..., bytes]) -> Path:
    """A set of one file, with small values in the leaves and large ones on pages of their own."""
    source = images(each=5)
    for seed in range(3):
        (source / "class 2" / f"big{seed}.png").write_bytes(picture(seed, 90, "PNG"))
    pack_lmdb(source, "set.lmdb")
    return folder / "set.lmdb"


@pytest.fixture
def shards(images: Callable[..., Path], folder: Path) -> Path:
    assert pack_lmdb(images(each=20, size=200), "many.lmdb", shard_size=100 << 10).shards > 2
    return folder / "many.lmdb"


@pytest.fixture
def flip(packed: Path) -> Flip:
    """Turn one bit of the file of `packed`."""

    def turn(offset: int) -> None:
        data = bytearray((packed / "data.mdb").read_bytes())
        data[offset] ^= 4
        (packed / "data.mdb").write_bytes(data)

    return turn


def outcome(path: Path, against: str | None = None) -> list[str]:
    """All that is said to be wrong: problems, or the error."""
    try:
        return [problem.what for problem in verify(path, against).problems]
    except PtoolsError as error:
        return [error.message]


def record_at(path: Path) -> int:
    return (path / "data.mdb").read_bytes().rindex(MAGIC)


def readable(path: Path) -> list[tuple[str, int, bytes]]:
    database = Database(path)
    stored = database.fetch(range(len(database)))
    return [(p, one.label, one.data) for p, one in zip(database.paths(), stored, strict=True)]


def test_a_whole_set_is_fine(packed: Path) -> None:
    report = verify(packed, against="imgs")
    sizes = [file.stat().st_size for file in Path("imgs").rglob("*.*g")]
    assert report.ok
    assert (report.problems, report.notes) == ((), ())
    assert (report.images, report.bytes, report.shards) == (len(sizes), sum(sizes), 1)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_several_files_and_each_alone_are_fine(shards: Path) -> None:
    assert verify(shards, against="imgs").ok
    alone = [verify(file, against="imgs") for file in sorted(shards.glob("*.mdb"))]
    assert all(report.ok for report in alone)
    assert sum(report.images for report in alone) == 60


def test_a_damaged_image_is_named(packed: Path, flip: Flip) -> None:
    row = Shard(packed / "data.mdb").row(7)
    flip(row.offset + row.length // 2)
    (problem,) = verify(packed).problems
    assert (problem.index, problem.path) == (7, "class 1/00007.jpg")
    assert (problem.file, problem.what) == ("data.mdb", "its bytes are damaged")


@pytest.mark.parametrize("region", ["prefix", "stamp", "header", "row", "paths"])
def test_a_bit_of_the_record_is_noticed(region: str, packed: Path, flip: Flip) -> None:
    start = record_at(packed)
    header = len(json.dumps(Shard(packed / "data.mdb").header)) // 8 * 8
    paths = (packed / "data.mdb").read_bytes().rindex(b"class 1/00007.jpg")
    places = {
        "prefix": start + 17,
        "stamp": start + STAMP_AT,
        "header": start + PREFIX_BYTES + header // 2,
        "row": paths - 4 * ROW_BYTES,
        "paths": paths + 3,
    }
    flip(places[region])
    assert outcome(packed)


def test_a_bit_of_each_page_is_noticed(packed: Path, flip: Flip) -> None:
    file = packed / "data.mdb"
    whole = file.read_bytes()
    root = Shard(file).tree.root
    newest = Shard(file).tree.transaction % 2  # which of the two meta pages
    meta = newest * 4096 + 16
    leaf = root * 4096
    for place in (meta, meta + 4, meta + 24, meta + 112, meta + 120, meta + 128, leaf, leaf + 12):
        flip(place)
        assert outcome(packed), f"byte {place}"
        file.write_bytes(whole)


def test_a_file_cut_anywhere_is_noticed(packed: Path) -> None:
    file = packed / "data.mdb"
    whole = file.read_bytes()
    generator = random.Random(0)
    for length in [0, 1, 100, 4096, 8192, *generator.sample(range(len(whole)), 15)]:
        file.write_bytes(whole[:length])
        assert outcome(packed), f"{length} bytes"
        assert outcome(file), f"{length} bytes, alone"


def test_whatever_is_damaged_is_found_or_harms_nobody(packed: Path) -> None:
    file = packed / "data.mdb"
    whole, truth = file.read_bytes(), readable(packed)
    start = record_at(packed)
    generator = random.Random(0)
    regions = [range(256), range(4096, 4352), range(start - 16, len(whole)), range(len(whole))]
    shard = Shard(file)
    leaf = shard.tree.root * shard.tree.page_size
    regions += [range(leaf, leaf + 128), range(leaf, leaf + 4096)]
    for trial in range(400):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 1, 1, 8))):
            value = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
            data[generator.choice(generator.choice(regions))] = value
        file.write_bytes(data)
        if not outcome(packed, "imgs" if trial % 4 == 0 else None):
            assert readable(packed) == truth, f"trial {trial}"


def test_swapped_and_missing_files_are_noticed(
    images: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    (images(each=1) / "class 2/00002.jpg").write_bytes(picture(2, 600))
    pack_lmdb("imgs", "many.lmdb", shard_size=1)
    shards = Path("many.lmdb")
    one, missing, last = sorted(shards.glob("*.mdb"))
    one.rename(shards / "other")
    last.rename(one)
    (shards / "other").rename(last)
    missing.unlink()
    report = verify(shards)
    assert (missing.name, "the file is missing") in {(p.file, p.what) for p in report.problems}
    assert {one.name, last.name} <= {problem.file for problem in report.problems}


def test_a_file_of_another_set_is_noticed(shards: Path, images: Callable[..., Path]) -> None:
    pack_lmdb(images("other", classes=5), "other.lmdb")
    shutil.copy("other.lmdb/data.mdb", shards / "data-00001.mdb")
    found = {problem.what for problem in verify(shards).problems}
    assert "it has classes that meta.json has not" in found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", 17),
        ("bytes", 1),
        ("classes", ["class 0"]),
        ("classes", ["class 0", "class 1", "class 2", "class 2"]),
        ("shards", []),
        ("shards", [{"file": "data.mdb", "images": -1, "bytes": -1}]),
        ("shards", [{"file": "../set.lmdb/data.mdb", "images": 18, "bytes": 1}]),
        ("shards", [{"file": "data.mdb", "images": float("inf"), "bytes": 1}]),
        ("shards", 7),
        ("version", None),
        ("version", 2),
        ("format", "other"),
    ],
)
def test_a_wrong_word_in_meta_json_is_noticed(name: str, value: object, packed: Path) -> None:
    document = json.loads((packed / "meta.json").read_text())
    (packed / "meta.json").write_text(json.dumps({**document, name: value}))
    assert outcome(packed)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "1" * 5000, "\udcff"])
def test_a_meta_json_that_is_none_is_an_error(text: str, packed: Path) -> None:
    (packed / "meta.json").write_text(text, errors="surrogateescape")
    with pytest.raises(PtoolsError):
        verify(packed)


def hostile(file: Path, row: Row | None = None, header: dict[str, object] | None = None) -> None:
    """A file whose checksums are right, and whose content is not what ptools writes."""
    write_shard(file, [(b"image", "cat/1.jpg", 0)], ["cat"])
    data = file.read_bytes()
    start = data.rindex(MAGIC)
    if row is not None:
        at = data.rindex(b"cat/1.jpg") - ROW_BYTES
        file.write_bytes(data[:at] + pack_row(*row) + data[at + ROW_BYTES :])
    if header is not None:
        length = int.from_bytes(data[start + 16 : start + 24], "little")
        text = json.dumps(header).encode().ljust(length)
        assert len(text) == length
        crc32 = zlib.crc32(text).to_bytes(4, "little")
        middle = data[start + 16 : start + PREFIX_BYTES]
        rest = data[start + PREFIX_BYTES + length :]
        file.write_bytes(data[: start + 12] + crc32 + middle + text + rest)


@pytest.mark.parametrize(
    "row",
    [
        Row(2**64 - 1, 5, 0, 0, 0, 9),
        Row(2**63 - 1, 2**32 - 1, 0, 0, 0, 9),
        Row(0, 2**32 - 1, 0, 0, 0, 9),
        Row(8192, 5, 7, 0, 0, 9),
        Row(8192, 5, 2**32 - 1, 0, 2**32 - 1, 65535),
    ],
)
def test_a_hostile_row_is_a_problem_and_no_crash(row: Row, folder: Path) -> None:
    hostile(folder / "evil.mdb", row=row)
    report = verify("evil.mdb", against=str(make_class(folder)))
    assert not report.ok
    with pytest.raises(PtoolsError):
        Database("evil.mdb").fetch([0])


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"version": 1, "classes": 3, "images": 1, "bytes": 5, "paths_crc32": 0},
        {"version": 1, "classes": ["cat"], "images": 1, "bytes": 5, "paths_crc32": "x"},
        {"version": 1, "classes": [{"a": 1}], "images": 9, "bytes": 9, "paths_crc32": 0},
    ],
)
def test_a_hostile_header_is_a_problem_and_no_crash(
    header: dict[str, object], folder: Path
) -> None:
    hostile(folder / "evil.mdb", header=header)
    assert not verify("evil.mdb").ok


def make_class(folder: Path) -> Path:
    (folder / "source" / "cat").mkdir(parents=True)
    return folder / "source"


@pytest.mark.parametrize("path", ["../secret", "/dev/zero", "cat/pipe", "nul\0", "cat"])
def test_a_hostile_path_is_compared_with_nothing(path: str, folder: Path) -> None:
    source = make_class(folder)
    (folder / "secret").write_bytes(b"image")
    os.mkfifo(source / "cat" / "pipe")
    write_shard(folder / "evil.mdb", [(b"image", path, 0)], ["cat"])
    assert len(verify("evil.mdb", against=source).problems) == 1


def test_a_folder_that_changed_is_told_file_by_file(packed: Path) -> None:
    source = Path("imgs")
    changed, shorter, gone, new = (
        source / name for name in ("class 0/00000.jpg", "class 0/00001.jpg", "class 1/00005.jpg",
                                   "class 2/new.jpg")
    )  # fmt: skip
    data = bytearray(changed.read_bytes())
    data[-5] ^= 1
    changed.write_bytes(data)
    shorter.write_bytes(shorter.read_bytes()[:-1])
    gone.unlink()
    new.write_bytes(b"new")
    assert verify(packed).ok
    problems = verify(packed, against=source).problems
    told = {problem.path: problem.what for problem in problems}
    assert len(problems) == len(told) == 4
    assert told["class 0/00000.jpg"] == "it differs from its file"
    assert "bytes, not" in told["class 0/00001.jpg"]
    assert "No such file" in told["class 1/00005.jpg"]
    assert told["class 2/new.jpg"] == "it is not in the set"


def test_what_packing_skipped_is_not_missed(images: Callable[..., Path]) -> None:
    source = images()
    (source / "class 0" / "bad.jpg").write_bytes(b"no image")
    (source / "class 0" / "broken.jpg").symlink_to("nowhere")
    pack_lmdb(source, "set.lmdb")
    assert verify("set.lmdb", against=source).ok


def test_files_that_are_not_listed_are_noted(packed: Path) -> None:
    (packed / "data-00009.mdb").touch()
    (packed / "notes.txt").touch()
    (packed / "lock.mdb").touch()
    report = verify(packed)
    assert report.ok
    assert len(report.notes) == 2


def test_a_compacted_copy_is_fine(packed: Path, folder: Path) -> None:
    (folder / "copy").mkdir()
    with lmdb.open(str(packed), readonly=True, lock=False) as environment:
        environment.copy("copy", compact=True)
    report = verify("copy/data.mdb", against="imgs")
    assert report.ok
    assert "rewritten" in report.notes[0]


def test_problems_are_counted_to_the_end(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT", 4)
    shutil.rmtree("imgs/class 0")
    report: VerifyReport = verify(packed, against="imgs")
    assert (len(report.problems), report.problem_count) == (4, 5)


def test_checking_needs_no_torch(packed: Path) -> None:
    code = (
        "import sys\nfrom ptools.image_lmdb import export, info, merge, unpack, verify\n"
        f"verify.verify({str(packed)!r})\n"
        "assert not {'torch', 'cv2', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
