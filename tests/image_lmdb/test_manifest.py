import csv
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb.manifest import read_manifest
from ptools.image_lmdb.scan import Entry, Notes, classes_of, scan

Write = Callable[[str, str], Path]
Seen = list[tuple[str, int]]

pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture
def images(write: Write) -> list[str]:
    names = ["10/1.jpg", "9/1.jpg", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/a,b.jpg"]
    for name in names:
        write(name, name)
    return names


def read(name: str, root: str | None = None) -> tuple[list[str], Seen, Notes]:
    notes = Notes()
    classes, entries = read_manifest(Path(name), None if root is None else Path(root), notes)
    return classes, [(entry.path, entry.label) for entry in entries], notes


def refused(name: str, root: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        read(name, root)
    assert error.value.hint
    return error.value.message


LISTED = (["a", "z"], [("dog/1.jpg", 1), ("cat/2.jpg", 0), ("dog/1.jpg", 1)], Notes())


@pytest.mark.parametrize("separator", [",", "\t", ", ", "\t "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "path,label\n", "\n \n"])
@pytest.mark.parametrize("name", ["list.txt", "list", "list.lst"])
def test_text_has_a_path_and_a_label_a_line(
    folder: Path, name: str, start: str, newline: str, separator: str
) -> None:
    rows = [("dog/1.jpg", "z"), ("./cat//2.jpg", "a"), ("dog/1.jpg", "z")]
    text = start + newline.join(separator.join(row) for row in rows)
    (folder / name).write_bytes(text.encode())
    assert read(name) == LISTED


def test_a_line_without_label_takes_the_folders_name(
    images: list[str], folder: Path, write: Write
) -> None:
    write("list.txt", "\n".join(images) + "\n")
    classes, entries, _ = read("list.txt")
    assert classes == classes_of(folder)
    assert entries == [(entry.path, entry.label) for entry in scan(folder, classes, Notes())]
    write("list.txt", "dog/1.jpg\ncat/1.jpg,dog\n9/1.jpg\n")
    assert read("list.txt")[:2] == (
        ["9", "dog"],
        [("dog/1.jpg", 1), ("cat/1.jpg", 1), ("9/1.jpg", 0)],
    )
    write("list.txt", "9/1.jpg\n10/1.jpg\n")  # as ImageFolder has it: names, not numbers
    assert read("list.txt")[:2] == (["10", "9"], [("9/1.jpg", 1), ("10/1.jpg", 0)])


def test_a_comma_in_a_name_is_no_label(write: Write) -> None:
    write("list.txt", "dog/a,b.jpg\ndog/a,b.jpg,cat\n")
    assert read("list.txt")[:2] == (["cat", "dog"], [("dog/a,b.jpg", 1), ("dog/a,b.jpg", 0)])


def test_an_entry_has_size_and_time(write: Write, folder: Path) -> None:
    write("list.txt", "cat/1.jpg,x\n")
    _, entries = read_manifest(folder / "list.txt", None, Notes())
    status = (folder / "cat/1.jpg").stat()
    assert list(entries) == [Entry("cat/1.jpg", 0, status.st_size, status.st_mtime_ns)]


@pytest.mark.parametrize(
    "header",
    ["path,label", "Label,PATH", "id,file_name,class", "category, filename ,x", "", "\ufeff"],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_csv_reads_what_the_csv_module_wrote(folder: Path, header: str, suffix: str) -> None:
    odd = ['"q".jpg', "a,b.jpg", "new\nline.jpg", "cr\r.jpg", " lead.jpg", "-x.jpg", "tab\t.jpg"]
    odd += [os.fsdecode(b"\xff.jpg"), "no extension", "🐈.jpg"]
    for name in odd:
        (folder / "cat" / name).write_bytes(b"")
    names = [name.strip().lower() for name in header.strip("\ufeff").split(",")]
    with Path(f"list{suffix}").open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(
            file, delimiter="\t" if suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL
        )
        if len(names) > 1:
            writer.writerow(header.split(","))
        for name in odd:
            path, label = f"cat/{name}", f"class, {name}"
            cells = {"path": path, "filename": path, "file_name": path, "id": "7", "x": ""}
            cells |= dict.fromkeys(["label", "class", "category"], label)
            writer.writerow([cells[name] for name in names] if len(names) > 1 else [path, label])
    classes, entries, notes = read(f"list{suffix}")
    assert classes == sorted(f"class, {name}".strip() for name in odd)
    assert entries == [(f"cat/{name}", classes.index(f"class, {name}")) for name in odd]
    assert notes == Notes()


def test_csv_with_paths_alone_takes_the_folders_names(write: Write) -> None:
    for header in ("", "path\n"):
        write("list.csv", header + "dog/1.jpg\ncat/1.jpg\n")
        assert read("list.csv")[:2] == (["cat", "dog"], [("dog/1.jpg", 1), ("cat/1.jpg", 0)])


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_has_the_same_columns(folder: Path, dictionary: bool, compression: str) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    paths, labels = ["dog/1.jpg", "cat/2.jpg", "dog/1.jpg"], ["z", "a", "z"]
    columns = [pyarrow.array(column) for column in (labels, [b"x"] * 3, paths)]
    if dictionary:
        columns = [column.dictionary_encode() for column in columns]
    table = pyarrow.table(columns, ["Class", "bytes", "File_name"])
    parquet.write_table(table, "list.parquet", compression=compression)
    assert read("list.parquet") == LISTED
    numbers = pyarrow.table({"path": paths, "label": pyarrow.array([10, 2, 10], pyarrow.uint8())})
    parquet.write_table(numbers, "list.parquet")
    assert read("list.parquet")[0] == [str(number) for number in range(11)]
    assert [label for _, label in read("list.parquet")[1]] == [10, 2, 10]


def test_parquet_that_names_no_files_is_refused(folder: Path, write: Write) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    for columns, message in [
        ({"key": ["a"]}, "names no path column, only key"),
        ({"path": ["a"], "y": [1]}, "names no label column, only path, y"),
        ({"path": [b"\xff\xd8"], "label": [1]}, "column path of list.parquet holds binary"),
        ({"image": [{"bytes": b"x"}], "label": [1]}, "column image of .* holds struct"),
        ({"path": ["a"], "label": [1.5]}, "column label of list.parquet holds double"),
        ({"path": ["cat/1.jpg", None], "label": [1, 2]}, "line 2 has an empty cell"),
        ({"path": ["cat/1.jpg", "a\0b"], "label": [1, 2]}, "line 2 holds a NUL byte"),
        ({"path": [], "label": []}, "column path of list.parquet holds null"),
    ]:
        parquet.write_table(pyarrow.table(columns), "list.parquet")
        with pytest.raises(UsageError, match=message):
            read("list.parquet")
    twice = pyarrow.table([["a"], ["b"], ["c"]], ["path", "path", "label"])
    parquet.write_table(twice, "list.parquet")
    assert refused("list.parquet") == "list.parquet has two columns of one name"
    bytes_ = pyarrow.array([b"\xff.jpg"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"path": bytes_, "label": [1]}), "list.parquet")
    assert "cannot be read as Parquet" in refused("list.parquet")
    whole = Path("list.parquet").read_bytes()
    for damaged in (b"", b"path,label\n", whole[:-20], b"PAR1" + bytes(200) + whole[-8:]):
        Path("list.parquet").write_bytes(damaged)
        assert "list.parquet" in refused("list.parquet")


def test_parquet_without_pyarrow_says_what_to_install(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write("list.parquet", "")
    with pytest.raises(PtoolsError) as error:
        read("list.parquet")
    assert (error.value.hint, error.value.exit_code) == ("pip install pyarrow", 1)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["2", "10", "0"], [str(number) for number in range(11)]),
        (["2", "10", "x"], ["10", "2", "x"]),
        (["02", "10"], ["02", "10"]),
        (["1.0", "0.0"], ["0.0", "1.0"]),
        (["\u0663", "1"], ["1", "\u0663"]),
    ],
)
def test_labels_that_are_all_numbers_are_class_numbers(
    write: Write, labels: list[str], classes: list[str]
) -> None:
    write("list.txt", "".join(f"cat/1.jpg,{label}\n" for label in labels))
    found, entries, _ = read("list.txt")
    assert found == classes
    assert [classes[label] for _, label in entries] == labels


def test_numbers_that_count_no_classes_are_refused(write: Write) -> None:
    write("list.txt", "cat/1.jpg,0\ncat/2.jpg,-1\n")
    assert refused("list.txt") == "list.txt has the label -1"
    write("list.txt", "cat/1.jpg,1020\ncat/2.jpg,0")
    assert len(read("list.txt")[0]) == 1021
    write("list.txt", "cat/1.jpg,1021\ncat/2.jpg,0")
    assert "has the label 1021: too large for a list of length 2" in refused("list.txt")
    write("list.txt", "cat/1.jpg,20240131093000123456\n")
    assert "has the label 20240131093000123456: too large" in refused("list.txt")


def test_paths_are_stored_from_the_source_on(folder: Path, write: Write) -> None:
    (folder / "link").symlink_to(folder)
    inside = ["cat/1.jpg", "./cat/1.jpg", "dog/../cat/1.jpg", f"{folder}/cat/1.jpg"]
    write(
        "lists/list.txt", "".join(f"{path},x\n" for path in [*inside, f"{folder}/x/../cat/1.jpg"])
    )
    for root in (str(folder), ".", "lists/..", "link"):
        assert read("lists/list.txt", root)[1] == [("cat/1.jpg", 0)] * 5
    write("list.txt", f"{folder}/link/cat/1.jpg,x\n")
    assert read("list.txt", "link")[1] == [("cat/1.jpg", 0)]


@pytest.mark.parametrize("path", ["../cat/1.jpg", "/etc/passwd", "a/../../cat/1.jpg", "..", "//x"])
def test_a_path_outside_the_source_is_refused(write: Write, folder: Path, path: str) -> None:
    write("dog/list.txt", f"1.jpg,x\n{path},x\n")
    assert refused("dog/list.txt") == f"dog/list.txt line 2: {path} lies outside {folder}/dog"


def test_a_neighbour_whose_name_begins_alike_is_outside(write: Write, folder: Path) -> None:
    write("cat2/1.jpg", "")
    write("list.txt", f"{folder}/cat2/1.jpg,x\n")
    assert "lies outside" in refused("list.txt", "cat")


def test_what_is_no_file_is_noted_and_not_opened(write: Write, folder: Path) -> None:
    os.mkfifo("cat/pipe.jpg")
    (folder / "cat/broken.jpg").symlink_to("nowhere")
    names = ["cat", "cat/no.jpg", "cat/pipe.jpg", "cat/broken.jpg", "x" * 300, "cat/1.jpg/2.jpg"]
    write("list.txt", "".join(f"{name},x\n" for name in [*names, "cat/2.jpg"]))
    _, entries, notes = read("list.txt")
    assert entries == [("cat/2.jpg", 0)]
    reasons = ["a folder, not a file", "No such file or directory", "a named pipe, not a file"]
    reasons += ["a broken link", "File name too long", "Not a directory"]
    assert notes == Notes(unreadable=list(zip(names, reasons, strict=True)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "", "list.txt lists no files"),
        ("list.txt", "\n\n", "list.txt lists no files"),
        ("list.csv", "path,label\n", "list.csv lists no files"),
        ("list.txt", "cat/1.jpg\n1.jpg\n", "list.txt line 2 gives no label"),
        ("list.txt", "cat/1.jpg,\n", "list.txt line 1 gives no label"),
        ("list.txt", "cat/1.jpg,x\n,x\n", "list.txt line 2 names no file"),
        ("list.txt", "cat/1.jpg,x\ncat/1\0.jpg,x\n", "list.txt line 2 holds a NUL byte"),
        ("list.csv", "cat/1.jpg,x\ncat/1\0.jpg,x\n", "list.csv line 2 holds a NUL byte"),
        ("list.txt", "cat/1.jpg,x\n" + "x" * 70_000, "list.txt line 2 is longer than any path"),
        ("list.csv", "cat/1.jpg,x\n" + "x" * 70_000, "list.csv line 2 is longer than any path"),
        ("list.csv", 'cat/1.jpg,x\n"cat/2.jpg,x\n', "list.csv line 2 is no CSV"),
        ("list.csv", 'a.jpg,x\n"' + "b,\n" * 70_000, "list.csv line .* is no CSV: field larger"),
        ("list.csv", "cat/1.jpg,x\ncat/1.jpg\n", "line 2 differs .*: column count 1, not 2"),
        ("list.csv", "cat/1.jpg\ndog/a,b.jpg\n", "line 2 differs .*: column count 2, not 1"),
        ("list.csv", "img,lbl\ncat/1.jpg,x\n", "list.csv line 1: 'img' is neither"),
        ("list.csv", "path,width\ncat/1.jpg,x\n", "list.csv line 1 names no label column"),
    ],
)
def test_a_list_that_is_none_is_refused(write: Write, name: str, text: str, message: str) -> None:
    write(name, text)
    with pytest.raises(UsageError, match=message):
        read(name)


def test_text_in_utf_16_is_refused(folder: Path) -> None:
    for name in ("list.txt", "list.csv"):
        (folder / name).write_text("cat/1.jpg,x\n", encoding="utf-16")
        assert f"{name} line 1 holds a NUL byte" in refused(name)


def test_a_list_that_cannot_be_read_is_refused(folder: Path, write: Write) -> None:
    write("list.txt", "cat/1.jpg,x\n")
    os.mkfifo("pipe.txt")
    assert refused("none.txt") == "cannot read none.txt: No such file or directory"
    assert refused("cat") == "cat is not a regular file"
    assert refused("pipe.txt") == "pipe.txt is not a regular file"
    assert refused("x" * 300) == f"cannot read {'x' * 300}: File name too long"
    assert refused("list.txt", "none") == "there is no folder none"


def test_a_list_that_changes_meanwhile_is_an_error(write: Write) -> None:
    write("list.txt", "cat/1.jpg,x\n")
    _, entries = read_manifest(Path("list.txt"), None, Notes())
    write("list.txt", "cat/1.jpg,y\n")
    with pytest.raises(PtoolsError, match=r"list\.txt was changed while it was read"):
        list(entries)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_rows(folder: Path, suffix: str) -> None:
    file = folder / f"list{suffix}"
    rows = [("cat/1.jpg", str(number % 100)) for number in range(20_000)]
    if suffix == ".parquet":
        pyarrow: Any = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.table(list(zip(*rows, strict=True)), ["path", "label"]), file
        )
    else:
        file.write_text("".join(f"{path},{label}\n" for path, label in rows))
    read_manifest(file, None, Notes())  # what is imported on the way does not count
    tracemalloc.start()
    try:
        classes, entries = read_manifest(file, None, Notes())
        assert (len(classes), sum(1 for _ in entries)) == (100, 20_000)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()
