"""`ptools pack-lmdb` and `ptools lmdb` as they are typed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ptools.cli import main, pack_lmdb_pages

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def images(folder: Path) -> Path:
    """Six images in two classes, and the current folder beside them."""
    for name in ("cat", "dog"):
        (folder / "imgs" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (20, 10 + number), (80 * number, 10, 99))
            image.save(folder / "imgs" / name / f"{number}.jpg")
    return folder / "imgs"


def test_the_page_ends_in_how_to_read_it_and_the_verdict(images: Path, capsys: Capture) -> None:
    assert main(["pack-lmdb", "imgs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("source    imgs: 2 classes, 6 images, ")
    code = [line[10:] for line in lines if "LMDBImageFolder" in line]
    names: dict[str, object] = {"transform": None}
    exec("\n".join(code), names)  # what the page says to type
    assert len(names["dataset"]) == 6  # type: ignore[arg-type]
    assert lines[-1] == "imgs.lmdb: 6 images packed"


def test_json_is_one_object(images: Path, capsys: Capture) -> None:
    assert main(["pack-lmdb", "imgs", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["command"], report["images"], report["classes"]) == ("pack-lmdb", 6, 2)
    assert report["source_bytes"] == sum(file.stat().st_size for file in images.rglob("*.jpg"))


def test_a_dry_run_writes_nothing(images: Path, capsys: Capture) -> None:
    before = sorted(images.parent.rglob("*"))
    assert main(["pack-lmdb", "imgs", "--dry-run"]) == 0
    assert "nothing was written (--dry-run)" in capsys.readouterr().out
    assert sorted(images.parent.rglob("*")) == before


def test_bad_files_are_listed_and_are_code_3(images: Path, capsys: Capture) -> None:
    (images / "cat" / "9.jpg").write_bytes(b"<html>not found</html>")
    (images / "dog" / "1.jpg").write_bytes((images / "dog" / "1.jpg").read_bytes()[:300])
    assert main(["pack-lmdb", "imgs"]) == 3
    out = capsys.readouterr().out
    assert "cat/9.jpg: not an image" in out
    assert "dog/1.jpg: truncated JPEG" in out
    assert out.splitlines()[-1] == "imgs.lmdb: 5 images packed, 2 files skipped"
    lines = (images.parent / "imgs.lmdb/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["cat/9.jpg", "dog/1.jpg"]


def test_fail_stops_at_the_first_and_keep_packs_them(images: Path, capsys: Capture) -> None:
    (images / "cat" / "9.jpg").write_bytes(b"")
    assert main(["pack-lmdb", "imgs", "--on-error", "fail"]) == 1
    assert "cat/9.jpg: empty file" in capsys.readouterr().err
    assert not (images.parent / "imgs.lmdb").exists()
    assert main(["pack-lmdb", "imgs", "--on-error", "keep"]) == 3
    assert "7 images packed, 1 of them bad" in capsys.readouterr().out


def test_an_existing_set_is_replaced_by_force_alone(images: Path, capsys: Capture) -> None:
    assert main(["pack-lmdb", "imgs"]) == 0
    assert main(["pack-lmdb", "imgs"]) == 2
    assert "imgs.lmdb already exists" in capsys.readouterr().err
    assert main(["pack-lmdb", "imgs", "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no SOURCE"),
        (["nowhere"], "there is no folder nowhere"),
        (["imgs/cat"], "3 images but no class folders"),
        (["imgs", "-o", "imgs/out.lmdb"], "lies inside"),
        (["imgs", "-o", "no/such/out.lmdb"], "there is no folder"),
        (["imgs", "--part", "3/3"], "'3/3' is no part"),
        (["imgs", "--shard-size", "big"], "'big' is not a size"),
        (["imgs", "--jobs", "0"], "--jobs"),
        (["--list", "none.csv"], "cannot read none.csv"),
        (["imgs", "-o", "nosuch://bucket/x"], "nosuch"),
    ],
)
def test_wrong_calls_are_one_sentence_and_code_2(
    images: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert main(["pack-lmdb", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err and not out
    assert sorted(path.name for path in images.parent.iterdir()) == ["imgs"]


def test_what_is_odd_in_the_source_is_warned_of(images: Path, capsys: Capture) -> None:
    (images / ".ipynb_checkpoints").mkdir()
    (images / "bird").mkdir()
    (images / "readme.txt").write_text("hello")
    (images / "cat" / "labels.csv").write_text("1,2")
    assert main(["pack-lmdb", "imgs"]) == 0
    err = capsys.readouterr().err
    for words in ("'.ipynb_checkpoints' is a class", "'bird'", "readme.txt", "1 .csv"):
        assert words in err
    assert "\nwarning" in err


def test_control_characters_of_a_name_do_not_reach_the_terminal(
    images: Path, capsys: Capture
) -> None:
    (images / "cat" / "\x1b[2J.jpg").write_bytes(b"")
    assert main(["pack-lmdb", "imgs"]) == 3
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert r"\x1b[2J.jpg: empty file" in out


def test_a_name_that_is_no_text_is_no_obstacle(images: Path, capsys: Capture) -> None:
    odd = images / os.fsdecode(b"\xff\xfe")
    odd.mkdir()
    Image.new("L", (3, 3)).save(odd / os.fsdecode(b"\xfd.png"))
    assert main(["pack-lmdb", "imgs", "--json"]) == 0
    assert main(["lmdb", "info", "imgs.lmdb"]) == 0
    assert main(["lmdb", "unpack", "imgs.lmdb", "-o", "back"]) == 0
    assert (images.parent / os.fsdecode(b"back/\xff\xfe/\xfd.png")).exists()


def test_packing_needs_neither_torch_nor_a_decoder(images: Path) -> None:
    code = (
        "import sys; from ptools.cli import main; code = main(['pack-lmdb', 'imgs'])\n"
        "print(code, {'torch', 'numpy', 'cv2', 'PIL'} & sys.modules.keys())"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=images.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["imgs"], (Path("imgs"), {})),
        (["imgs", "-o", "a.lmdb"], (Path("imgs"), {"output": "a.lmdb"})),
        (["--output", "a.lmdb", "imgs"], (Path("imgs"), {"output": "a.lmdb"})),
        (["imgs", "--jobs", "2"], None),  # Typer reads all others, and what is wrong
        (["imgs", "more"], None),
        (["imgs", "-o", "-f"], None),
        (["imgs", "-o"], None),
        (["--help"], None),
        ([], None),
    ],
)
def test_the_usual_call_is_read_without_typer(
    words: list[str], expected: tuple[Path, dict[str, str]] | None
) -> None:
    assert pack_lmdb_pages.plain(words) == expected


@pytest.mark.parametrize(("environment", "imported"), [({}, False), ({"FORCE": "1"}, True)])
def test_a_usual_call_does_not_wait_for_typer(
    environment: dict[str, str], imported: bool, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"PTOOLS_PACK_LMDB_{name}", value)
    code = (
        "import sys; from ptools.cli import main; code = main(['pack-lmdb', 'imgs'])\n"
        "print(code, 'typer' in sys.modules)"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=images.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"0 {imported}"


def test_the_whole_round(images: Path, capsys: Capture) -> None:
    def run(*words: str) -> str:
        assert main(["lmdb", *words]) == 0
        return capsys.readouterr().out

    assert main(["pack-lmdb", "imgs", "--jobs", "2", "--shard-size", "1KB"]) == 0
    assert "6 shards" in capsys.readouterr().out
    assert "6 images" in run("info", "imgs.lmdb")
    assert "6 images" in run("verify", "imgs.lmdb", "--against", "imgs")
    assert "6 images" in run("unpack", "imgs.lmdb", "-o", "back")
    assert (images.parent / "back/dog/2.jpg").read_bytes() == (images / "dog/2.jpg").read_bytes()
    assert "12 images" in run("merge", "imgs.lmdb", "imgs.lmdb", "-o", "two.lmdb")
    assert "12 images" in run("export", "two.lmdb", "-o", "tars")
    assert "2 classes" in run("view", "two.lmdb", "--tensorboard", "logs")


def test_verify_finds_a_flipped_bit_and_says_so_with_code_3(images: Path, capsys: Capture) -> None:
    assert main(["pack-lmdb", "imgs"]) == 0
    file = images.parent / "imgs.lmdb/data.mdb"
    data = bytearray(file.read_bytes())
    at = data.find((images / "dog/1.jpg").read_bytes())
    data[at + 50] ^= 4
    file.write_bytes(data)
    capsys.readouterr()
    assert main(["lmdb", "verify", "imgs.lmdb"]) == 3
    assert "dog/1.jpg" in capsys.readouterr().out


def test_the_options_of_a_subcommand_come_from_pyproject(
    images: Path, write: Callable[[str, str], Path], capsys: Capture
) -> None:
    write("pyproject.toml", "[tool.ptools.lmdb.verify]\njson = true\n")
    assert main(["pack-lmdb", "imgs"]) == 0
    capsys.readouterr()
    assert main(["lmdb", "verify", "imgs.lmdb"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "lmdb verify"
    write("pyproject.toml", "[tool.ptools.lmdb.verfy]\njson = true\n")
    assert main(["lmdb", "verify", "imgs.lmdb"]) == 2
    assert "did you mean verify?" in capsys.readouterr().err
