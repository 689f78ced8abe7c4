"""One set packed by several calls, or several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from lmdb.verify import verify

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb import packing
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.plan import Options, Part

Images = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
Expected = Callable[..., dict[str, bytes]]
Packer = Callable[..., "subprocess.Popen[bytes]"]

OUT, WORK = Path("out.lmdb"), Path("out.lmdb.part")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("order", list(permutations(range(3)))[::2])
def test_parts_in_any_order_make_the_set_of_one_run(
    order: tuple[int, ...], images: Images, contents: Contents, expected: Expected
) -> None:
    source = images(each=5)
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    (source / "class 2/gone.jpg").symlink_to("nowhere")
    for number in order:
        assert not OUT.exists()
        report = pack_lmdb(source, OUT, shard_size=1, part=f"{number}/3")
        assert report.complete == (number == order[-1])
        assert report.shards == len(range(number, 16, 3))
    assert contents(OUT) == expected(source, shard_size=1)
    assert not WORK.exists()


def test_parts_at_the_same_time_make_the_set_of_one_run(
    images: Images, contents: Contents, expected: Expected, packer: Packer
) -> None:
    source = images(each=10)
    whole = expected(source, shard_size=1)
    parts = [packer(source, OUT, shard_size=1, part=f"{number}/3") for number in range(3)]
    results = [process.communicate() for process in parts]
    assert [process.returncode for process in parts] == [0, 0, 0], results
    complete = [json.loads(output)["complete"] for output, _ in results]
    assert any(complete)
    assert contents(OUT) == whole
    assert not WORK.exists()


def test_a_part_that_is_done_does_not_wait_for_the_others(images: Images, packer: Packer) -> None:
    source = images(each=60)
    slow = packer(source, OUT, shard_size=1, part="0/2", before="import os; os.nice(5)")
    wait_for(lambda: list(WORK.glob("part-0*")))
    report = pack_lmdb(source, OUT, shard_size=1, part="179/180")
    assert not report.complete
    assert slow.poll() is None


def test_more_parts_than_shards_are_no_trouble(
    images: Images, contents: Contents, expected: Expected
) -> None:
    source = images()
    reports = [pack_lmdb(source, OUT, part=f"{number}/3") for number in (2, 1, 0)]
    assert [report.shards for report in reports] == [0, 0, 1]
    assert [report.complete for report in reports] == [False, False, True]
    assert contents(OUT) == expected(source)


def test_the_same_part_twice_at_once_is_refused(images: Images, packer: Packer) -> None:
    source = images(each=40)
    first = packer(source, OUT, shard_size=1, part="0/2")
    wait_for(lambda: list(WORK.glob("*.done")))
    with pytest.raises(PtoolsError, match="by another process"):
        pack_lmdb(source, OUT, shard_size=1, part="0/2")
    with pytest.raises(PtoolsError, match="by another process"):
        pack_lmdb(source, OUT, shard_size=1)
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert pack_lmdb(source, OUT, shard_size=1, part="0/2").shards_kept
    assert pack_lmdb(source, OUT, shard_size=1, part="1/2").complete


def test_a_file_that_another_packer_renames_meanwhile_is_none_of_somebody_elses(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images()
    pack_lmdb(source, OUT, shard_size=1, part="0/2")
    listed, gone = Path.iterdir, [".data-00001.mdb.0123abcd.part"]

    def late(folder: Path) -> list[Path]:
        return [*listed(folder), *(folder / gone.pop() for _ in gone[:])]

    monkeypatch.setattr(Path, "iterdir", late)
    assert pack_lmdb(source, OUT, shard_size=1, part="1/2").complete
    assert not gone


def test_a_part_after_the_last_says_that_the_set_is_there(
    images: Images, contents: Contents
) -> None:
    source = images()
    for number in range(2):
        pack_lmdb(source, OUT, shard_size=1, part=f"{number}/2")
    before = contents(OUT)
    with pytest.raises(UsageError, match="already exists"):
        pack_lmdb(source, OUT, shard_size=1, part="0/2")
    assert contents(OUT) == before
    assert not WORK.exists()


@pytest.mark.parametrize(
    "other", [{"check": "none"}, {"shard_size": 0}, {"quality": 50}, {"source": "others"}]
)
def test_a_part_with_other_options_is_refused(other: dict[str, Any], images: Images) -> None:
    images()
    images("others", each=2)
    options: dict[str, Any] = {"source": "imgs", "shard_size": 1}
    pack_lmdb(output=OUT, part="0/2", **options)
    with pytest.raises(UsageError, match="other parts") as caught:
        pack_lmdb(output=OUT, part="1/2", **{**options, **other})
    assert str(WORK) in str(caught.value.hint)
    assert pack_lmdb(output=OUT, part="1/2", **options).complete


@pytest.mark.parametrize(
    "part",
    ["", "/", "1", "1/", "/2", "2/2", "0/0", "-1/2", "1/-2", "a/b", "1/2/3", "0.5/2", " 0/2"],
)
def test_a_part_that_is_none_is_refused(part: str, images: Images) -> None:
    with pytest.raises(UsageError, match="is no part"):
        pack_lmdb(images(), OUT, part=part)
    assert not WORK.exists()


@pytest.mark.parametrize("length", [0, 3, 8, -1, -9])
def test_a_damaged_plan_is_told_in_a_sentence(length: int, images: Images) -> None:
    source = images()
    pack_lmdb(source, OUT, shard_size=1, part="0/2")
    plan = (WORK / "plan").read_bytes()
    (WORK / "plan").write_bytes(plan[:length])
    with pytest.raises(PtoolsError, match="plan is damaged") as caught:
        pack_lmdb(source, OUT, shard_size=1, part="1/2")
    assert "without --part" in str(caught.value.hint)
    assert pack_lmdb(source, OUT, shard_size=1).shards_kept == 6


def test_a_run_as_a_whole_takes_over_from_parts(
    images: Images, contents: Contents, expected: Expected
) -> None:
    source = images()
    pack_lmdb(source, OUT, shard_size=1, part="1/2")
    assert pack_lmdb(source, OUT, shard_size=1).shards_kept == 6
    assert contents(OUT) == expected(source, shard_size=1)
    assert not WORK.exists()


def test_parts_replace_a_set_if_asked(
    images: Images, contents: Contents, expected: Expected
) -> None:
    source = images()
    pack_lmdb(source, OUT)
    old = contents(OUT)
    pack_lmdb(source, OUT, shard_size=1, part="0/2", force=True)
    assert contents(OUT) == old
    assert pack_lmdb(source, OUT, shard_size=1, part="1/2", force=True).complete
    assert contents(OUT) == expected(source, shard_size=1)


# Several processes


@pytest.mark.parametrize("jobs", [2, 3, 7, 50])
def test_jobs_do_not_change_a_byte(
    jobs: int, images: Images, contents: Contents, expected: Expected, small_blocks: str
) -> None:
    source = images(each=14)
    for number in range(0, 42, 5):  # of every kind: in a leaf, on pages of its own, left out
        file = source / f"class {number // 14}/{number:05d}.jpg"
        file.write_bytes(b"bad" if number % 2 else file.read_bytes() + bytes(9000) + b"\xff\xd9")
    report = pack_lmdb(source, OUT, jobs=jobs)
    assert (report.images, report.shards, len(report.skipped)) == (38, 1, 4)
    assert contents(OUT) == expected(source, jobs=1)
    assert not verify(str(OUT / "data.mdb"))


@pytest.mark.parametrize(
    ("images", "nbytes", "check", "cores", "members"),
    [
        (8_000, 750 << 20, "header", 8, 1),
        (50_000, 130 << 20, "header", 8, 3),
        (50_000, 130 << 20, "header", 2, 2),
        (90_000, 8 << 30, "header", 16, 9),
        (8_000, 750 << 20, "decode", 8, 8),
        (100, 10 << 20, "decode", 8, 1),
    ],
)
def test_as_many_processes_as_are_worth_it(
    images: int,
    nbytes: int,
    check: Any,
    cores: int,
    members: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "usable_cores", lambda: cores)
    part = Part(0, 1000, images, nbytes, 2 * nbytes, "")
    assert packing._worth(part, Options(check)) == members


def test_progress_of_processes_is_that_of_the_whole(images: Images, small_blocks: str) -> None:
    source, seen = images(each=7), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptools.image_lmdb.progress._EVERY", 0.0)
        pack_lmdb(source, OUT, jobs=2, progress=seen.append)
    packing = [one for one in seen if one.phase == "packing"]
    assert packing[-1].images == packing[-1].total_images == 21
    assert packing[-1].bytes == packing[-1].total_bytes


@pytest.mark.parametrize("bad", range(0, 21, 3))
def test_an_error_in_a_process_is_the_same_error(
    bad: int, images: Images, small_blocks: str
) -> None:
    source = images(each=7)
    for number in (bad, 20):
        (source / f"class {number // 7}/{number:05d}.jpg").write_bytes(b"bad")
    caught = []
    for jobs in (1, 3):
        with pytest.raises(PtoolsError) as error:
            pack_lmdb(source, OUT, jobs=jobs, on_error="fail")
        caught.append((error.value.message, error.value.hint, error.value.exit_code))
    assert caught[0] == caught[1]
    assert f"{bad:05d}.jpg" in caught[0][0]
    assert not list(WORK.glob(".*"))


def test_a_process_that_is_killed_is_told(images: Images, small_blocks: str) -> None:
    source = images(each=7)
    (source / "class 1/00010.jpg").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("false"))
        with pytest.raises(PtoolsError, match="ended with code 1") as error:
            pack_lmdb(source, OUT, jobs=2)
    assert "same command again" in str(error.value.hint)
    assert pack_lmdb(source, OUT, jobs=2).images == 20


def test_a_process_that_is_killed_while_it_tells_is_told(images: Images, small_blocks: str) -> None:
    source, killed = images(each=7), Path("killed").absolute()
    killed.write_text("#!/bin/sh\nprintf '{\"rows\": 12'\nkill -9 $$\n")
    killed.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(killed))
        with pytest.raises(PtoolsError, match="ended with code -9"):
            pack_lmdb(source, OUT, jobs=2)


def test_what_lies_in_the_current_folder_is_not_run(images: Images, small_blocks: str) -> None:
    source = images(each=7)
    for name in ("json", "lmdb", "zlib", "ptools"):
        Path(f"{name}.py").write_text("raise SystemExit('run by mistake')")
    assert pack_lmdb(source, OUT, jobs=2).complete


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    text = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(number) for file in text for number in file.read_text().split()]


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def heavy(folder: Path, picture: Callable[..., bytes], small_blocks: str) -> Path:
    """Images that take a second to decode."""
    data = picture(0, 1000)
    for number in range(160):
        path = folder / f"imgs/{number // 80}/{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "imgs"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_first(
    stop: signal.Signals, heavy: Path, packer: Packer, small_blocks: str
) -> None:
    process = packer(heavy, OUT, before=small_blocks, jobs=3, check="decode")
    wait_for(lambda: any(file.stat().st_size for file in WORK.glob(".data*")))
    others = children(process)
    assert len(others) == 2
    began = time.monotonic()
    os.kill(process.pid, stop)
    _, error = process.communicate()
    wait_for(lambda: not any(map(alive, others)))
    assert time.monotonic() - began < 0.7
    assert not list(WORK.glob("*.done"))
    assert error.decode().count("Traceback") == (stop == signal.SIGINT)
    if stop == signal.SIGINT:
        assert not list(WORK.glob(".*"))
    assert pack_lmdb(heavy, OUT, jobs=2).images == 160


def test_the_first_ends_where_another_is_killed(
    heavy: Path, packer: Packer, small_blocks: str
) -> None:
    process = packer(heavy, OUT, before=small_blocks, jobs=3, check="decode")
    wait_for(lambda: any(file.stat().st_size for file in WORK.glob(".data*")))
    os.kill(children(process)[0], signal.SIGKILL)
    _, error = process.communicate()
    assert "ended with code -9" in error.decode().splitlines()[-1]
    assert not list(WORK.glob(".*"))
