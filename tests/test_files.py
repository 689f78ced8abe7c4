import os
import stat
from pathlib import Path

import pytest

from ptools.errors import UsageError
from ptools.files import atomic_write, free_space, human_bytes, parse_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1610612736, "1.50 GiB"),
        (1024**2 - 1, "1.00 MiB"),
        (5 * 1024**6, "5120.00 PiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1048576", 1048576),
        ("24GB", 24 * 1000**3),
        ("24GiB", 24 * 1024**3),
        ("512M", 512 * 1024**2),
        ("1.5 kib", 1536),
        (" 2tb ", 2 * 1000**4),
        ("80b", 80),
    ],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "24GX", "1e9", "inf", "5iB", "1 2"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


def test_free_space_of_a_path_to_come(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(free_space(tmp_path), rel=0.05)


def test_atomic_write_appears_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "report.csv"
    with atomic_write(out) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".csv"
        temporary.write_text("done")
        assert not out.exists()
    assert out.read_text() == "done"
    assert names(tmp_path) == ["report.csv"]


def test_atomic_write_gives_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "ours") as temporary:
        temporary.write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_atomic_write_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(out, force=True) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert out.read_text() == "old"
    assert names(tmp_path) == ["report"]


def test_atomic_write_refuses_an_existing_file(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.write_text("old")
    with pytest.raises(UsageError) as caught, atomic_write(out):
        pytest.fail("the block must not run")
    assert "--force" in str(caught.value.hint)
    assert out.read_text() == "old"


def test_atomic_write_refuses_a_file_that_appeared_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "report"
    with pytest.raises(UsageError, match="already exists"), atomic_write(out) as temporary:
        temporary.write_text("mine")
        out.write_text("theirs")
    assert out.read_text() == "theirs"
    assert names(tmp_path) == ["report"]


def test_atomic_write_with_force_replaces_what_a_link_names(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link", force=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_atomic_write_needs_a_folder_and_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder") as caught, atomic_write(tmp_path / "a" / "b"):
        pass
    assert "mkdir -p" in str(caught.value.hint)
    with pytest.raises(UsageError, match="is a folder"), atomic_write(tmp_path, force=True):
        pass


def test_atomic_write_replaces_no_device_and_no_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="not a regular file"), atomic_write(pipe, force=True):
        pass
    assert pipe.is_fifo()
