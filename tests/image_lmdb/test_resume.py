"""Packing that is killed, fails or is disturbed at any moment, and the same call again."""

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptools.errors import PtoolsError
from ptools.image_lmdb import packing, run
from ptools.image_lmdb.database import Database
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.local import LocalStore
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.store import Store

Images = Callable[..., Path]
Picture = Callable[..., bytes]
Contents = Callable[[Path], dict[str, bytes]]
Expected = Callable[..., dict[str, bytes]]
Packer = Callable[..., "subprocess.Popen[bytes]"]

OUT, WORK = Path("out.lmdb"), Path("out.lmdb.part")
ONE_EACH = 1  # a shard size: every image has a shard of its own


def finished_shards() -> dict[str, tuple[int, int]]:
    """The identity and time of each shard that a killed run had finished."""
    found = {}
    for done in WORK.glob("*.done"):
        shard = WORK / "set" / done.stem
        if shard.exists():
            found[shard.name] = (shard.stat().st_ino, shard.stat().st_mtime_ns)
    return found


def still_there(shards: dict[str, tuple[int, int]]) -> bool:
    now = {name: (OUT / name).stat() for name in shards}
    return shards == {name: (one.st_ino, one.st_mtime_ns) for name, one in now.items()}


def processes_at(folder: Path) -> list[str]:
    """The processes that have a file open below a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith(str(folder.absolute())):
            found.append(f"{link}: {target}")
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_at_random(process: "subprocess.Popen[bytes]", longest: float) -> None:
    time.sleep(random.uniform(0, longest))
    process.kill()
    process.communicate()


@pytest.fixture
def killed(packer: Packer, small_blocks: str) -> Callable[..., int]:
    """Kill a run at a random moment and resume it; returns how many shards were kept."""

    def kill_and_resume(
        source: Path, expected: dict[str, bytes], contents: Contents, longest: float, **options: Any
    ) -> int:
        kill_at_random(packer(source, OUT, before=small_blocks, **options), longest)
        if OUT.exists():  # it was killed after its last step, or just before
            assert contents(OUT) == expected
            kept, done = 0, {}
        else:
            wait_for(lambda: not processes_at(WORK))
            done = finished_shards()
            report = pack_lmdb(source, OUT, **options)
            kept = report.shards_kept
            assert kept == len(done)
            assert report.complete
        assert contents(OUT) == expected
        assert still_there(done)
        return kept

    return kill_and_resume


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("jobs", "rounds"),
    [
        (1, 3),
        (2, 1),
        pytest.param(1, 15, marks=pytest.mark.slow),
        pytest.param(2, 6, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_continued_to_the_same_bytes(
    jobs: int, rounds: int, images: Images, contents: Contents, killed: Any, expected: Expected
) -> None:
    source = images(each=10 if rounds < 10 else 30)
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    shard_size = ONE_EACH if jobs == 1 else 45_000  # two processes need a shard of some blocks
    began = time.monotonic()
    whole = expected(source, shard_size=shard_size, jobs=jobs)
    seconds = time.monotonic() - began
    kept = 0
    for _ in range(rounds):
        kept += killed(source, whole, contents, seconds, shard_size=shard_size, jobs=jobs)
        for folder in filter(Path.exists, (OUT, WORK)):
            remove(folder)
    assert kept or rounds < 10


def test_finished_shards_are_kept_and_rubbish_goes(
    images: Images, contents: Contents, packer: Packer, expected: Expected
) -> None:
    source = images(each=20)
    whole = expected(source, shard_size=ONE_EACH)
    for count in (5, 15, 25):
        process = packer(source, OUT, shard_size=ONE_EACH)
        wait_for(lambda count=count: len(finished_shards()) >= count)
        process.kill()
        process.communicate()
    for name in (".data-00003.mdb.0a1b2c3d.part", ".plan.part", "set/.meta.0a1b2c3d.tmp.json"):
        (WORK / name).write_bytes(b"rubbish of a killed run")
    done = finished_shards()
    report = pack_lmdb(source, OUT, shard_size=ONE_EACH)
    assert report.shards_kept == len(done) >= 25
    assert still_there(done)
    assert contents(OUT) == whole
    assert not WORK.exists()


@pytest.mark.parametrize("shard_size", [0, ONE_EACH])
def test_what_killed_runs_left_does_not_fill_the_disk(shard_size: int, images: Images) -> None:
    source = images()
    WORK.mkdir()
    (WORK / ".data-00000.mdb.0a1b2c3d.part").write_bytes(bytes(1000))
    seen = []

    def free_space(path: Path) -> int:
        seen.extend(WORK.glob(".data*"))
        return 1 << 40

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "free_space", free_space)
        pack_lmdb(source, OUT, shard_size=shard_size)
    assert not seen


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_set_killed_while_it_is_replaced_is_old_or_new(
    rounds: int, images: Images, picture: Picture, contents: Contents, packer: Packer
) -> None:
    source = images(each=8)
    pack_lmdb(source, OUT, shard_size=ONE_EACH)
    for number in range(rounds):
        old = contents(OUT)
        (source / f"class 1/{number}.jpg").write_bytes(picture(number))
        process = packer(source, OUT, shard_size=ONE_EACH, force=True)
        began = time.monotonic()
        if number % 2:
            kill_at_random(process, 0.5)
        else:  # at about the moment of the replacement
            wait_for(lambda one=process: (WORK / "set/meta.json").exists() or one.poll() == 0)
            kill_at_random(process, 0.005)
        assert time.monotonic() - began < 20
        # Between the two renames neither has the name; then the old one is in the workspace.
        now = contents(OUT if OUT.exists() else WORK / "old")
        kept = Database(OUT if OUT.exists() else WORK / "old")
        assert now == old or len(kept) == 24 + number + 1
        assert len(kept.fetch(range(len(kept)))) == len(kept)
        assert pack_lmdb(source, OUT, shard_size=ONE_EACH, force=True).complete
        assert len(Database(OUT)) == 24 + number + 1
        assert not WORK.exists()


def test_a_run_killed_between_its_renames_is_completed(
    images: Images, contents: Contents, monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    source = images()
    pack_lmdb(source, OUT, shard_size=ONE_EACH)
    whole = expected(source)
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if path.name == "set":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            pack_lmdb(source, OUT, force=True)
    assert not OUT.exists()
    assert len(Database(WORK / "old")) == 12
    report = pack_lmdb(source, OUT, force=True)
    assert (report.shards_kept, contents(OUT)) == (1, whole)
    assert not WORK.exists()


def test_a_source_that_changed_meanwhile_is_packed_as_it_is_now(
    images: Images, picture: Picture, contents: Contents, packer: Packer, expected: Expected
) -> None:
    source = images(each=20)
    process = packer(source, OUT, shard_size=ONE_EACH)
    wait_for(lambda: len(finished_shards()) >= 30)
    process.kill()
    process.communicate()
    before = finished_shards()
    (source / "class 1/00020.jpg").write_bytes(picture(777))
    (source / "class 2/00059.jpg").unlink()
    (source / "class 2/extra.jpg").write_bytes(picture(778))
    report = pack_lmdb(source, OUT, shard_size=ONE_EACH)
    del before["data-00020.mdb"]
    assert report.shards_kept == len(before)
    assert still_there(before)
    assert contents(OUT) == expected(source, shard_size=ONE_EACH)


def test_progress_counts_what_is_left_to_do(images: Images) -> None:
    source, seen = images(), []
    pack_lmdb(source, OUT, shard_size=ONE_EACH, part="0/3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptools.image_lmdb.progress._EVERY", 0.0)
        pack_lmdb(source, OUT, shard_size=ONE_EACH, progress=seen.append)
    assert seen[-1].images == seen[-1].total_images == 8


def test_fewer_shards_leave_none_behind(
    images: Images, contents: Contents, packer: Packer, expected: Expected
) -> None:
    source = images(each=20)
    process = packer(source, OUT, shard_size=ONE_EACH)
    wait_for(lambda: len(finished_shards()) >= 10)
    process.kill()
    process.communicate()
    pack_lmdb(source, OUT)
    assert contents(OUT) == expected(source)


class Stop(Exception):
    pass


def test_a_report_of_another_run_does_not_vouch_for_a_shard(
    images: Images, contents: Contents, monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    source = images()
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    write = LocalStore.write

    def stop(when: str) -> Callable[..., None]:
        def maybe(store: LocalStore, name: str, data: bytes) -> None:
            if name == when:
                raise Stop
            write(store, name, data)

        return maybe

    for policy, when in (("skip", "meta.json"), ("keep", "data.mdb.done")):
        monkeypatch.setattr(LocalStore, "write", stop(when))
        with pytest.raises(Stop):
            pack_lmdb(source, OUT, on_error=policy)  # type: ignore[arg-type]
    monkeypatch.setattr(LocalStore, "write", write)
    pack_lmdb(source, OUT)
    assert contents(OUT) == expected(source)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": 1}', "null"])
def test_a_damaged_report_is_no_report(text: str, images: Images, planned: Any) -> None:
    plan, store = planned(images())
    packing.pack_shard(plan, 0, store)
    (store.workspace / "data.mdb.done").write_text(text)
    assert packing.finished(plan, 0, store) is None
    assert packing.pack_shard(plan, 0, store).images == 12


# A second packer


def test_a_second_packer_is_refused_until_the_first_is_dead(
    images: Images, packer: Packer, contents: Contents, expected: Expected
) -> None:
    source = images(each=40)
    process = packer(source, OUT, shard_size=ONE_EACH)
    wait_for(lambda: finished_shards())
    began = time.monotonic()
    with pytest.raises(PtoolsError, match="is being packed by another process") as caught:
        pack_lmdb(source, OUT, shard_size=ONE_EACH)
    assert caught.value.hint
    assert time.monotonic() - began < 1
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert pack_lmdb(source, OUT, shard_size=ONE_EACH).shards_kept
    assert contents(OUT) == expected(source, shard_size=ONE_EACH)


def test_of_many_packers_at_once_one_packs(
    images: Images, packer: Packer, contents: Contents, expected: Expected
) -> None:
    source = images(each=10)
    whole = expected(source, shard_size=ONE_EACH)
    processes = [packer(source, OUT, shard_size=ONE_EACH) for _ in range(4)]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes].count(0) == 1
    for error in filter(None, errors):
        assert "is being packed by another process" in error or "already exists" in error
    assert contents(OUT) == whole
    assert not WORK.exists()


# Failing disks


def nothing_has_its_name() -> bool:
    return not OUT.exists() and not list(WORK.glob(".*")) and not (WORK / "set/meta.json").exists()


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
"""


@pytest.mark.parametrize("limit", [100, 5_000, 50_000, 10_000_000])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_cannot_grow_is_one_error(
    limit: int,
    jobs: int,
    images: Images,
    packer: Packer,
    contents: Contents,
    expected: Expected,
    small_blocks: str,
) -> None:
    source = images(each=30, size=100)
    code = small_blocks + LIMITED.replace("LIMIT,", f"{limit},").replace("LIMIT)", f"{limit})")
    process = packer(source, OUT, before=code, jobs=jobs, shard_size=350_000)
    _, error = process.communicate()
    if limit < 1_000_000:
        assert process.returncode
        last = error.decode().splitlines()[-1]
        assert last.startswith("ptools.errors.PtoolsError: cannot write ")
        assert nothing_has_its_name()
        assert pack_lmdb(source, OUT, shard_size=350_000).complete
    assert contents(OUT) == expected(source, shard_size=350_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("only root may mount a disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_is_one_error_and_the_rest_comes_later(
    jobs: int,
    images: Images,
    small_disk: Path,
    contents: Contents,
    expected: Expected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = images(each=20, size=300)
    out = small_disk / "out.lmdb"
    (small_disk / "other").write_bytes(bytes(1_700_000))
    monkeypatch.setattr(run, "free_space", lambda path: 1 << 40)
    with pytest.raises(PtoolsError, match=r"cannot write .*disk/out\.lmdb\.part: ") as caught:
        pack_lmdb(source, out, shard_size=ONE_EACH, jobs=jobs)
    assert "run the same command again" in str(caught.value.hint)
    assert caught.value.message.endswith(" are free")
    assert not out.exists()
    (small_disk / "other").unlink()
    report = pack_lmdb(source, out, shard_size=ONE_EACH)
    assert report.shards_kept
    assert contents(out) == expected(source, shard_size=ONE_EACH)


@pytest.mark.parametrize("name", ["plan", "data.mdb.done", "skipped.jsonl", "meta.json"])
def test_any_file_that_cannot_be_written_is_one_error(
    name: str, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images()
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    rename, replace = Path.rename, Path.replace

    def fail(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def maybe(path: Path, target: Path) -> Path:
            if Path(target).name == name:
                raise OSError(5, "Input/output error")
            return move(path, target)

        return maybe

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail(rename))
        patch.setattr(Path, "replace", fail(replace))
        with pytest.raises(PtoolsError, match="Input/output error"):
            pack_lmdb(source, OUT)
    assert nothing_has_its_name()
    assert pack_lmdb(source, OUT).complete


@pytest.mark.parametrize("step", ["pwrite", "fsync", "ftruncate"])
def test_a_write_that_fails_is_one_error(
    step: str, images: Images, planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: Plan
    store: Store
    plan, store = planned(images())

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(PtoolsError, match="No space left on device"):
        packing.pack_shard(plan, 0, store)
    assert [path.name for path in store.workspace.iterdir()] == ["plan"]


def test_ctrl_c_leaves_only_what_is_finished(images: Images, packer: Packer) -> None:
    source = images(each=40)
    process = packer(source, OUT, shard_size=ONE_EACH)
    wait_for(lambda: len(finished_shards()) > 5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert error.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert nothing_has_its_name()
    assert pack_lmdb(source, OUT, shard_size=ONE_EACH).shards_kept > 5
