import os
import socket
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptools.errors import UsageError
from ptools.image_lmdb.scan import IMAGE_EXTENSIONS, Entry, Notes, classes_of, no_images, scan

Seen = list[tuple[str, int]]


@pytest.fixture
def image_folder(torchvision: Any) -> Callable[[Path], Seen]:
    """What ImageFolder sees: relative paths and labels."""

    def see(root: Path) -> Seen:
        data = torchvision.datasets.ImageFolder(root, allow_empty=True)
        assert data.classes == classes_of(root)
        return [(os.path.relpath(path, root), label) for path, label in data.samples]

    return see


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def scanned(root: Path) -> tuple[Seen, Notes]:
    notes = Notes()
    return [(entry.path, entry.label) for entry in scan(root, classes_of(root), notes)], notes


def test_extensions_are_those_of_torchvision(torchvision: Any) -> None:
    assert torchvision.datasets.folder.IMG_EXTENSIONS == IMAGE_EXTENSIONS


def test_order_and_labels_are_those_of_image_folder(
    folder: Path, image_folder: Callable[[Path], Seen]
) -> None:
    nested = ["a/2.jpg", "a-b/1.jpg", "a.b/1.jpg", "a/b/1.jpg", "a/b/c/0.jpg", "a b/1.jpg", "z.jpg"]
    nested += ["a/b.c/1.jpg", "a/b-c/1.jpg", "a0/1.jpg", "A/1.jpg", "a/B/1.jpg", "a/10.jpg"]
    classes = ["a", "a-b", "a.b", "B", "10", "9", "é", "z"]
    root = make(folder / "imgs", *(f"{name}/{path}" for name in classes for path in nested))
    expected = image_folder(root)
    assert len(expected) == len(classes) * len(nested)
    assert scanned(root) == (expected, Notes())


def test_only_the_extension_makes_an_image(
    folder: Path, image_folder: Callable[[Path], Seen]
) -> None:
    images = [f"1{extension}" for extension in IMAGE_EXTENSIONS]
    images += ["2.JPG", "2.Jpeg", "2.tar.PNG", ".jpg", ".hidden/3.WebP"]
    others = ["4.gif", "4.jpg.txt", "5.TXT", "jpg", ".DS_Store", "7.jpg~", "8.TİFF"]
    root = make(folder / "imgs", *(f"c/{name}" for name in images + others))
    entries, notes = scanned(root)
    assert entries == image_folder(root)
    assert notes.others == Counter(Path(name.lower()).suffix for name in others)


def test_odd_names_come_through(folder: Path, image_folder: Callable[[Path], Seen]) -> None:
    odd = ["new\nline", "tab\tcr\r", "emoji 🐈", "-rf", "--help", " ", "é", "e\u0301", "a\\b", "*?"]
    odd += [os.fsdecode(b"latin \xe9"), os.fsdecode(b"\xff\xfe"), "[red]", "x" * 251, "é" * 125]
    root = make(folder / "imgs", *(f"c/{name}.jpg" for name in odd))
    make(root, *(f"{name[:200]}/1.jpg" for name in odd), *(f"c/{name[:200]}/1.jpg" for name in odd))
    entries, notes = scanned(root)
    assert entries == image_folder(root)
    assert len(entries) == 3 * len(odd)
    assert notes == Notes()


def test_an_entry_has_size_and_time(folder: Path) -> None:
    make(folder, "imgs/c/1.jpg")
    (folder / "imgs/c/1.jpg").write_bytes(b"12345")
    os.utime("imgs/c/1.jpg", ns=(1, 1_700_000_000_123_456_000))
    Path("imgs/c/2.jpg").symlink_to("1.jpg")
    for root in (Path("imgs"), folder / "imgs"):
        assert list(scan(root, ["c"], Notes())) == [
            Entry(f"c/{name}", 0, 5, 1_700_000_000_123_456_000) for name in ("1.jpg", "2.jpg")
        ]


def test_links_are_followed(folder: Path, image_folder: Callable[[Path], Seen]) -> None:
    make(folder, "far/1.jpg", "far/sub/2.jpg", "imgs/a/x/1.jpg")
    Path("imgs/linked").symlink_to(folder / "far")
    Path("imgs/a/more").symlink_to("../../far/sub")
    Path("imgs/a/twice").symlink_to("../../far/sub")
    Path("imgs/alias").symlink_to("a")
    Path("imgs/a/one.jpg").symlink_to("../../far/1.jpg")
    entries, notes = scanned(folder / "imgs")
    assert entries == image_folder(folder / "imgs")
    assert len(entries) == 4 + 4 + 2
    assert notes == Notes()


def test_a_loop_is_not_entered(folder: Path) -> None:
    root = make(folder / "imgs", "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    Path("imgs/a/deep/up").symlink_to("..")
    Path("imgs/b/to-the-source").symlink_to("../..")
    Path("imgs/b/to-what-is-above").symlink_to(folder.parent)
    Path("imgs/self").symlink_to(".")
    entries, notes = scanned(root)
    assert entries == [("a/1.jpg", 0), ("a/deep/2.jpg", 0), ("b/3.jpg", 1)]
    assert notes == Notes(
        loops=["a/deep/up", "b/to-the-source", "b/to-what-is-above", "self"], empty_classes=["self"]
    )


def test_links_between_classes_end(folder: Path) -> None:
    root = make(folder / "imgs", "a/1.jpg", "b/2.jpg")
    Path("imgs/a/b").symlink_to("../b")
    Path("imgs/b/a").symlink_to("../a")
    entries, notes = scanned(root)
    assert entries == [("a/1.jpg", 0), ("a/b/2.jpg", 0), ("b/2.jpg", 1), ("b/a/1.jpg", 1)]
    assert notes.loops == ["a/b/a", "b/a/b"]


def test_what_is_no_file_is_noted_and_not_opened(folder: Path) -> None:
    root = make(folder / "imgs", "c/1.jpg")
    os.mkfifo("imgs/c/pipe.jpg")
    os.mkfifo("imgs/c/pipe")
    Path("imgs/c/broken.jpg").symlink_to("nowhere")
    Path("imgs/c/images").symlink_to("/no/such/disk")
    Path("imgs/dogs").symlink_to("/no/such/disk")
    Path("imgs/c/circle.jpg").symlink_to("circle.jpg")
    Path("imgs/c/null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("imgs/c/s.jpg")
    entries, notes = scanned(root)
    assert entries == [("c/1.jpg", 0)]
    assert notes.unreadable == [
        ("dogs", "a broken link"),
        ("c/images", "a broken link"),
        ("c/broken.jpg", "a broken link"),
        ("c/circle.jpg", "Too many levels of symbolic links"),
        ("c/null.jpg", "a device, not a file"),
        ("c/pipe.jpg", "a named pipe, not a file"),
        ("c/s.jpg", "a socket, not a file"),
    ]
    assert notes.others == {"": 1}


def test_a_folder_named_like_an_image_is_a_folder(
    folder: Path, image_folder: Callable[[Path], Seen]
) -> None:
    root = make(folder / "imgs", "c.jpg/1.jpg", "c.jpg/2.png/3.jpg")
    assert scanned(root) == (image_folder(root), Notes())


def test_a_folder_that_cannot_be_listed_is_noted(
    folder: Path, image_folder: Callable[[Path], Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(folder / "imgs", "c/1.jpg")
    monkeypatch.chdir(root / "c")
    for _ in range(20):  # a path longer than the system takes
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    entries, notes = scanned(root)
    assert entries == image_folder(root) == [("c/1.jpg", 0)]
    ((path, reason),) = notes.unreadable
    assert path.startswith("c/ddd")
    assert reason == "File name too long"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_folder_without_permission_is_noted(folder: Path) -> None:
    root = make(folder / "imgs", "a/1.jpg", "b/2.jpg")
    (root / "a").chmod(0)
    entries, notes = scanned(root)
    (root / "a").chmod(0o755)
    assert entries == [("b/2.jpg", 1)]
    assert notes == Notes(unreadable=[("a", "Permission denied")], empty_classes=["a"])


def test_an_empty_class_keeps_its_label(folder: Path, image_folder: Callable[[Path], Seen]) -> None:
    root = make(folder / "imgs", "b/1.jpg", "c/readme.txt")
    (root / "a/deep").mkdir(parents=True)
    entries, notes = scanned(root)
    assert entries == image_folder(root) == [("b/1.jpg", 1)]
    assert notes == Notes(others=Counter([".txt"]), empty_classes=["a", "c"])


def test_folders_that_tools_make_are_classes_but_noted(
    folder: Path, image_folder: Callable[[Path], Seen]
) -> None:
    names = [".ipynb_checkpoints", ".git", "__MACOSX", "cat"]
    root = make(folder / "imgs", *(f"{name}/1.jpg" for name in names))
    entries, notes = scanned(root)
    assert entries == image_folder(root)
    assert notes == Notes(suspicious_classes=[".git", ".ipynb_checkpoints", "__MACOSX"])


def test_files_in_no_class_are_counted(folder: Path, image_folder: Callable[[Path], Seen]) -> None:
    root = make(folder / "imgs", "c/1.jpg", "b.jpg", "a.jpg", "labels.csv")
    entries, notes = scanned(root)
    assert entries == image_folder(root) == [("c/1.jpg", 0)]
    assert (notes.stray, notes.first_stray) == (3, "a.jpg")


def test_a_source_that_is_no_image_folder_is_refused(folder: Path) -> None:
    make(folder, "file", "flat/1.jpg", "flat/2.JPG", "flat/x.txt")
    (folder / "empty").mkdir()
    (folder / "unmounted").mkdir()
    Path("unmounted/cats").symlink_to("/no/such/disk")
    for name, message in [
        ("none", "there is no folder none"),
        ("file", "file is not a folder"),
        ("empty", "empty is empty"),
        ("flat", "flat holds 2 images and 1 other file but no class folders"),
        ("unmounted", "unmounted holds 1 broken link but no class folders"),
    ]:
        with pytest.raises(UsageError, match=f"^{message}$") as refused:
            classes_of(Path(name))
        assert refused.value.hint


def test_no_images_tells_what_was_found(folder: Path) -> None:
    root = make(Path("imgs"), "a/1.heic", "a/2.HEIC", "b/notes")
    _, notes = scanned(root)
    assert no_images(root, notes).message == (
        "the class folders of imgs hold no images, but 2 .heic, 1 extensionless files"
    )
    Path("imgs/a/1.jpg").symlink_to("nowhere")
    _, notes = scanned(root)
    assert "a/1.jpg: a broken link" in no_images(root, notes).message


def test_kinds_of_other_files_are_not_counted_without_end(folder: Path) -> None:
    root = make(folder / "imgs", *(f"c/frame.{number:06}" for number in range(1500)))
    _, notes = scanned(root)
    assert notes.others.total() == 1500
    assert len(notes.others) <= 1001


def test_memory_does_not_grow_with_the_images(folder: Path) -> None:
    for group in range(40):
        Path(f"imgs/c/{group:02}").mkdir(parents=True)
        for number in range(500):
            os.close(os.open(f"imgs/c/{group:02}/{number:05}.jpg", os.O_CREAT | os.O_WRONLY))
    entries = scan(Path("imgs"), ["c"], Notes())
    tracemalloc.start()
    try:
        assert sum(1 for _ in entries) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
