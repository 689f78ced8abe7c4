import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ptools.checkpoint import CorruptCheckpoint, fix_ckpt
from ptools.checkpoint.output.journal import undo
from ptools.errors import PtoolsError, UsageError

WEIGHTS = {f"module.layer{index}.weight": torch.rand(50, 20) for index in range(3)}
AS_ROOT = os.geteuid() == 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def is_fixed(path: Path) -> bool:
    loaded = load(path)
    return list(loaded) == [name.removeprefix("module.") for name in WEIGHTS] and all(
        torch.equal(loaded[name.removeprefix("module.")], tensor)
        for name, tensor in WEIGHTS.items()
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.save(WEIGHTS, path)
    return path


def journal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.ptools-undo")


# ---- killed at any moment ------------------------------------------------------------------------

# Runs the same fix in forks of itself; in the n-th, the n-th call that changes the disk is half
# done, and then the process is no more. `target` gets its old content back before each.
KILLER = """
import json, os, shutil, signal, sys
from pathlib import Path
from ptools.checkpoint import fix_ckpt
import ptools.checkpoint.job, ptools.checkpoint.output.inplace, ptools.checkpoint.output.torch_file

source, target, original, work = map(Path, sys.argv[1:5])
options = json.loads(sys.argv[5])
calls = "pwrite write fsync replace rename truncate ftruncate unlink fchmod".split()

def kill_at(last):
    done = 0
    def doomed(name, real):
        def call(*args, **kwargs):
            nonlocal done
            done += 1
            if done == last:
                if "write" in name:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in calls:
        setattr(os, name, doomed(name, getattr(os, name)))

number = 0
while True:
    number += 1
    folder = work / str(number)
    folder.mkdir()
    here = folder / target.name
    if original.exists():
        shutil.copy(original, here)
    child = os.fork()
    if child == 0:
        kill_at(number)
        inplace = options.get("inplace")
        fix_ckpt(here if inplace else source, None if inplace else here, **options)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(number, os.WEXITSTATUS(status))
        break
"""


def killed_everywhere(source: Path, original: Path, work: Path, **options: Any) -> list[Path]:
    """The folders in which fixes were killed, each one call later, and the last one, which ended.

    `original` is the target as it was before; it need not exist.
    """
    work.mkdir()
    command = [sys.executable, "-c", KILLER, str(source), "out.pt", str(original), str(work)]
    done = subprocess.run([*command, json.dumps(options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, code = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert count > 4
    return [work / str(number) for number in range(1, count + 1)]


def test_a_new_file_killed_at_any_moment_is_complete_or_not_there(
    source: Path, tmp_path: Path
) -> None:
    *killed, complete = killed_everywhere(source, tmp_path / "none", tmp_path / "work")
    there = [folder / "out.pt" for folder in killed if (folder / "out.pt").exists()]
    assert len(there) < len(killed)
    assert is_fixed(complete / "out.pt")
    assert {path.read_bytes() for path in there} <= {(complete / "out.pt").read_bytes()}


def test_what_was_there_is_whole_until_the_new_file_is(source: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    old.write_bytes(b"what was there before")
    *killed, complete = killed_everywhere(source, old, tmp_path / "work", force=True)
    new = (complete / "out.pt").read_bytes()
    found = [(folder / "out.pt").read_bytes() for folder in killed]
    assert set(found) <= {old.read_bytes(), new}
    assert found[0] == old.read_bytes()
    assert found == sorted(found, key=lambda data: data == new)  # old, ..., old, new, ...


@pytest.mark.parametrize("options", [{}, {"drop": ["*layer2*"]}], ids=["patched", "rewritten"])
def test_inplace_killed_at_any_moment_loses_nothing(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    *killed, complete = killed_everywhere(
        source, source, tmp_path / "work", inplace=True, **options
    )
    old, new = source.read_bytes(), (complete / "out.pt").read_bytes()
    interrupted = 0
    for folder in killed:
        path = folder / "out.pt"
        if path.read_bytes() not in (old, new):
            interrupted += 1
            assert path.read_bytes().startswith(old)
            with pytest.raises(CorruptCheckpoint, match="interrupted") as caught:
                fix_ckpt(path, folder / "other.pt")
            assert f"{path} --inplace" in (caught.value.hint or "")
        if path.read_bytes() != new or journal_of(path).exists():
            fix_ckpt(path, inplace=True, **options)
        assert path.read_bytes() == new
        assert not journal_of(path).exists()
    assert (interrupted > 0) == (options == {})


def test_real_kills_at_random_moments(tmp_path: Path) -> None:
    path, out, expected = tmp_path / "large.pt", tmp_path / "out.pt", tmp_path / "expected.pt"
    torch.save({"module.w": torch.rand(10_000_000), "module.v": torch.rand(5_000_000)}, path)
    fix_ckpt(path, expected)
    old, new = b"old", expected.read_bytes()
    expected.rename(tmp_path / "out.pt")  # the archive's folder is called after the file
    fix_ckpt(path, out, force=True)
    new = out.read_bytes()
    code = f"import ptools.checkpoint as c; print(1, flush=True); c.fix_ckpt({str(path)!r}, "
    code += f"{str(out)!r}, force=True)"
    for delay in (0.0, 0.02, 0.05, 0.1, random.uniform(0, 0.3)):
        out.write_bytes(old)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert out.read_bytes() in (old, new)


# ---- an interrupted patch ------------------------------------------------------------------------


def interrupted(path: Path, share: float) -> bytes:
    """Leave a file as `--inplace` does that was killed; returns the file as it was."""
    before = path.read_bytes()
    fix_ckpt(path, inplace=True)
    after = path.read_bytes()
    path.write_bytes(before)
    tail = before[-128:].hex()
    journal_of(path).write_text(json.dumps({"size": len(before), "end": tail}))
    path.write_bytes(after[: len(before) + int((len(after) - len(before)) * share)])
    return before


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 1])
def test_an_interrupted_patch_is_undone_and_done_again(source: Path, share: float) -> None:
    before = interrupted(source, share)
    for options in ({}, {"dry_run": True}, {"inplace": True, "dry_run": True}):
        with pytest.raises(CorruptCheckpoint, match="interrupted"):
            fix_ckpt(source, **options)
    assert names(source.parent) == [".net.pt.ptools-undo", "net.pt"]
    report = fix_ckpt(source, inplace=True)
    assert any("interrupted" in note for note in report.notes)
    assert is_fixed(source)
    assert source.read_bytes().startswith(before)
    assert names(source.parent) == ["net.pt"]


def test_undoing_gives_back_the_very_file(source: Path) -> None:
    before = interrupted(source, 0.5)
    assert undo(source)
    assert source.read_bytes() == before
    assert not undo(source)


def test_a_link_finds_the_journal_of_its_file(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.pt"
    link.parent.mkdir()
    link.symlink_to(source)
    interrupted(source, 0.5)
    with pytest.raises(CorruptCheckpoint, match="interrupted"):
        fix_ckpt(link)
    fix_ckpt(link, inplace=True)
    assert is_fixed(source) and link.is_symlink()
    assert names(tmp_path) == ["elsewhere", "net.pt"] and names(link.parent) == ["link.pt"]


JOURNALS = [
    b"",
    b"{",
    b'{"size": 12',
    b"[]",
    b"{}",
    b"null",
    b"7",
    b'{"size": "x", "end": 3}',
    b'{"size": -5, "end": ""}',
    b'{"size": 1e400, "end": ""}',
    b'{"size": 5.5, "end": ""}',
    b'{"size": 0, "end": null}',
    b'{"size": 100000000000000000000000, "end": ""}',
    b'{"size": 4611686018427387904, "end": ""}',
    b'{"size": 64, "end": "00"}',
    b'{"size": true, "end": "50"}',
    b"\xff\xfe",
    b"[" * 100_000,
]


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_journal_that_is_cut_short_or_of_another_file_does_no_harm(
    source: Path, journal: bytes
) -> None:
    before = source.read_bytes()
    journal_of(source).write_bytes(journal)
    fix_ckpt(source, inplace=True)
    assert source.read_bytes().startswith(before)
    assert is_fixed(source)
    assert names(source.parent) == ["net.pt"]


def test_a_journal_whose_file_was_replaced_does_no_harm(source: Path) -> None:
    interrupted(source, 0.5)
    torch.save(WEIGHTS | {"module.more": torch.rand(1000)}, source)
    before = source.read_bytes()
    fix_ckpt(source, inplace=True)
    assert source.read_bytes().startswith(before)
    assert "more" in load(source)


def test_a_journal_whose_file_is_gone_is_no_reason_to_fail_otherwise(source: Path) -> None:
    interrupted(source, 0.5)
    source.unlink()
    with pytest.raises(PtoolsError, match="does not exist"):
        fix_ckpt(source, inplace=True)


def test_ctrl_c_while_patching_leaves_the_file_as_it_was(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = source.read_bytes(), os.fsync

    def stopped(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > len(before):
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        fix_ckpt(source, inplace=True)
    assert source.read_bytes() == before
    assert names(source.parent) == ["net.pt"]


def test_an_archive_behind_other_bytes_is_not_patched_but_refused_or_kept(source: Path) -> None:
    """Its directory counts from the archive's start, a new one would count from the file's."""
    source.write_bytes(b"PK\3\4 and other things" + source.read_bytes())
    before = source.read_bytes()
    try:
        fix_ckpt(source, inplace=True)
    except PtoolsError:
        assert source.read_bytes() == before
    else:
        assert is_fixed(source)
    assert names(source.parent) == ["net.pt"]


def test_a_second_pickle_further_down_is_none_of_ours(source: Path) -> None:
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("net/extra/data.pkl", b"anything")
    fix_ckpt(source, inplace=True)
    assert is_fixed(source)


# ---- full and failing disks ----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk after its space was counted."""
    monkeypatch.setattr("ptools.checkpoint.output.writing.free_space", lambda path: 1 << 60)


def test_what_does_not_fit_is_not_begun(tmp_path: Path, small_disk: Path) -> None:
    path, out = tmp_path / "big.pt", small_disk / "out.pt"
    torch.save({"w": torch.rand(100_000)}, path)
    out.write_bytes(b"old")
    with pytest.raises(PtoolsError, match="KiB free") as caught:
        fix_ckpt(path, out, force=True)
    assert "-o" in (caught.value.hint or "")
    assert out.read_bytes() == b"old" and names(small_disk) == ["out.pt"]


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("options", [{}, {"hash": True}, {"safetensors": True}])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(
    tmp_path: Path, small_disk: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "big.pt"
    torch.save({"w": torch.rand(100_000)}, path)
    out = small_disk / ("out.safetensors" if "safetensors" in options else "out.pt")
    out.write_bytes(b"old")
    with pytest.raises(PtoolsError, match="No space left"):
        fix_ckpt(path, out, force=True, **options)
    with pytest.raises(PtoolsError, match="No space left"):
        fix_ckpt(path, small_disk / "shards", shard_size=300_000, weights_only=True)
    assert out.read_bytes() == b"old" and names(small_disk) == [out.name]


@pytest.mark.usefixtures("blind")
def test_a_patch_for_which_there_is_no_room_is_taken_back(small_disk: Path) -> None:
    path = small_disk / "net.pt"
    many = {f"module.{index}": torch.ones(1) for index in range(100)}
    torch.save(many, path)
    (small_disk / "filler").write_bytes(
        bytes((64 << 10) - path.stat().st_size // 4096 * 4096 - 8192)
    )
    before = path.read_bytes()
    with pytest.raises(PtoolsError, match="No space left"):
        fix_ckpt(path, inplace=True)
    assert path.read_bytes() == before
    assert names(small_disk) == ["filler", "net.pt"]


class FullDisk:
    """Takes so many bytes, the last of them in a call that takes only some."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.lock = threading.Lock()

    def around(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(descriptor: int, data: bytes, *at: int) -> int:
            with self.lock:
                if self.room == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written = real(descriptor, bytes(data)[: self.room], *at)
                self.room -= written
                return written

        return call


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"inplace": True, "compact": True}])
def test_a_disk_that_is_full_at_any_byte_leaves_all_as_it_was(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.save({name: tensor[:, :5] for name, tensor in WEIGHTS.items()}, source)
    out = source if "inplace" in options else tmp_path / "out.pt"
    if out != source:
        out.write_bytes(b"old")
    before, listed = out.read_bytes(), names(tmp_path)
    size, steps = 0, 0
    while True:
        disk = FullDisk(size)
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(os, "pwrite", disk.around(os.pwrite))
            patching.setattr(os, "write", disk.around(os.write))
            try:
                fix_ckpt(source, None if out == source else out, force=True, **options)
            except PtoolsError as error:
                assert "No space left" in error.message
            else:
                break
        assert out.read_bytes() == before
        assert names(tmp_path) == listed
        steps, size = steps + 1, size + 101
    assert steps > 3
    assert len(load(out)) == len(WEIGHTS)


def test_a_disk_that_fails_to_write_what_it_took_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes once, from the first fsync after it."""
    real, failed = os.fsync, []

    def fsync(descriptor: int) -> None:
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PtoolsError, match="Input/output error"):
        fix_ckpt(source, tmp_path / "out.pt")
    assert failed and names(tmp_path) == ["net.pt"]


def test_a_disk_that_gives_back_something_else_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def wrong(descriptor: int, data: bytes, at: int) -> int:
        changed = bytearray(data)
        if len(changed) > 3000:
            changed[1000] ^= 1
        return real(descriptor, bytes(changed), at)

    monkeypatch.setattr(os, "pwrite", wrong)
    with pytest.raises(PtoolsError, match="does not give back"):
        fix_ckpt(source, tmp_path / "out.pt")
    assert names(tmp_path) == ["net.pt"]


# ---- damaged sources -----------------------------------------------------------------------------


def flip(path: Path, record: str) -> None:
    """Flip one bit in a record's payload."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(record)
        with archive.open(entry) as payload:
            payload.read(1)
            first = archive.fp.tell() if archive.fp else 0
    data = bytearray(path.read_bytes())
    start = data.index(zipfile.ZipFile(path).read(record), entry.header_offset)
    assert first
    data[start + entry.file_size // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"safetensors": True}])
def test_a_flipped_bit_that_torch_does_not_see_is_named(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    flip(source, "net/data/1")
    assert not torch.equal(load(source)["module.layer1.weight"], WEIGHTS["module.layer1.weight"])
    with pytest.raises(CorruptCheckpoint, match=r"damaged.* layer1\.weight") as caught:
        fix_ckpt(source, tmp_path / "out", **options)
    assert "layer0" not in caught.value.message
    assert names(tmp_path) == ["net.pt"]


def test_a_flipped_bit_in_what_is_left_out_does_not_matter(source: Path, tmp_path: Path) -> None:
    flip(source, "net/data/1")
    fix_ckpt(source, tmp_path / "out.pt", drop=["*layer1*"])
    assert list(load(tmp_path / "out.pt")) == ["layer0.weight", "layer2.weight"]


@pytest.mark.parametrize("record", ["data.pkl", "byteorder"])
def test_a_flipped_bit_in_the_pickle_is_found(source: Path, record: str) -> None:
    flip(source, f"net/{record}")
    with pytest.raises(PtoolsError):
        fix_ckpt(source)
    assert names(source.parent) == ["net.pt"]


@pytest.mark.parametrize("old", [False, True])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.rand(30)}, path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(PtoolsError):
            fix_ckpt(path)
        assert names(tmp_path) == ["net.pt"]


# ---- whose file it is, and where it goes ---------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o640, 0o444])
@pytest.mark.parametrize("options", [{}, {"hash": True}, {"inplace": True}, {"dtype": "bf16"}])
def test_mode_and_owner_are_those_of_the_source(
    source: Path, tmp_path: Path, mode: int, options: dict[str, Any]
) -> None:
    source.chmod(mode)
    if AS_ROOT:
        os.chown(source, 1234, 2345)
    elif not mode & 0o200:
        pytest.skip("only root may patch it")
    out = None if "inplace" in options else tmp_path / "out.pt"
    (path,) = fix_ckpt(source, out, **options).outputs
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == mode
    if AS_ROOT:
        assert (found.st_uid, found.st_gid) == (1234, 2345)


def test_an_output_that_exists_needs_force(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match="already exists"):
        fix_ckpt(source, out)
    assert out.read_bytes() == b"old"
    fix_ckpt(source, out, force=True)
    assert is_fixed(out)


def test_the_source_is_no_output(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    link = tmp_path / "link.pt"
    link.symlink_to(source)
    for given, out in ((source, source), (source, link), (link, source), (link, link)):
        with pytest.raises(UsageError, match="itself"):
            fix_ckpt(given, out, force=True)
    assert source.read_bytes() == before


def test_a_hard_link_is_another_name_that_may_be_replaced(source: Path, tmp_path: Path) -> None:
    before, other = source.read_bytes(), tmp_path / "other.pt"
    other.hardlink_to(source)
    fix_ckpt(source, other, force=True)
    assert is_fixed(other)
    assert source.read_bytes() == before


def test_a_shard_of_the_source_is_no_output(source: Path, tmp_path: Path) -> None:
    fix_ckpt(source, tmp_path / "shards", shard_size=4000, safetensors=True)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    for shard in (tmp_path / "shards").iterdir():
        before = shard.read_bytes()
        for given in (index, tmp_path / "shards"):
            with pytest.raises(UsageError, match="itself"):
                fix_ckpt(given, shard, force=True)
        assert shard.read_bytes() == before


def test_inplace_through_a_link_changes_the_file_and_keeps_the_link(
    source: Path, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere" / "link.pt"
    link.parent.mkdir()
    link.symlink_to(source)
    fix_ckpt(link, inplace=True)
    assert is_fixed(source)
    fix_ckpt(link, inplace=True, dtype="float64")
    assert link.is_symlink() and link.readlink() == source
    assert load(source)["layer0.weight"].dtype == torch.float64
    assert names(link.parent) == ["link.pt"] and names(tmp_path) == ["elsewhere", "net.pt"]


@pytest.mark.parametrize("options", [{}, {"hash": True}, {"shard_size": 4000}])
def test_an_output_in_a_folder_that_does_not_exist_is_a_usage_error(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="no folder") as caught:
        fix_ckpt(source, tmp_path / "no" / "out.bin", weights_only=True, **options)
    assert "mkdir -p" in (caught.value.hint or "")


def test_the_folder_one_is_in_stands_for_the_checkpoint_in_it(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.parent.joinpath("run").mkdir()
    source = source.rename(source.parent / "run" / "net.pt")
    monkeypatch.chdir(source.parent)
    (path,) = fix_ckpt(".").outputs
    assert is_fixed(path)


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A folder of root's with a checkpoint, while we are nobody, whom permissions concern."""
    if not AS_ROOT:
        pytest.skip("only root can become nobody")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        torch.save(WEIGHTS, folder / "net.pt")
        (folder / "net.pt").chmod(0o644)
        for number, options in enumerate(OPTIONS):  # modules that nobody may not import
            fix_ckpt(folder / "net.pt", tmp_path / f"warm{number}", **options)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"hash": True},
    {"shard_size": 4000, "weights_only": True},
    {"drop": ["*layer2*"]},
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_one_may_not_write_is_said(
    foreign: Path, options: dict[str, Any], inplace: bool
) -> None:
    before = (foreign / "net.pt").read_bytes()
    if inplace and options.keys() & {"shard_size", "hash"}:
        pytest.skip("these need an output")
    out = None if inplace else foreign / "out"
    with pytest.raises(PtoolsError, match="cannot be written: Permission denied"):
        fix_ckpt(foreign / "net.pt", out, inplace=inplace, **options)
    assert names(foreign) == ["net.pt"] and (foreign / "net.pt").read_bytes() == before


def test_what_one_may_not_read_is_said(foreign: Path) -> None:
    os.seteuid(0)
    (foreign / "net.pt").chmod(0o600)
    os.seteuid(65534)
    with pytest.raises(PtoolsError, match="cannot be read: Permission denied"):
        fix_ckpt(foreign / "net.pt")
