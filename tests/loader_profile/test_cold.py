import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from ptools.errors import PtoolsError
from ptools.loader_profile.cold import evict, files_of, resident

MIB = 1 << 20


class Holder:
    """A dataset with the given attributes, which says so if anything is run or computed."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        pytest.fail("the dataset must not be run")

    def __getitem__(self, index: int) -> object:
        pytest.fail("the dataset must not be run")

    @property
    def opened_on_first_use(self) -> object:
        pytest.fail("properties must not be computed")


class Named(NamedTuple):
    label: int
    path: str


@dataclass(slots=True)
class Slotted:
    label: int
    path: str


@pytest.fixture
def images(folder: Path) -> list[Path]:
    """Three files in a folder `images`, and one beside it."""
    (folder / "images").mkdir()
    paths = [folder / "images" / f"{number}.jpg" for number in range(3)]
    for path in (*paths, folder / "other.bin"):
        path.write_bytes(b"0")
    return paths


@pytest.fixture
def cached(tmp_path: Path) -> list[Path]:
    """Files that the page cache holds, on a disk that lets go of them."""
    paths = [tmp_path / f"{number}.bin" for number in range(4)]
    for path in paths:
        path.write_bytes(os.urandom(MIB + 1))
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(MIB))
    evict([probe])
    if resident([probe]) > 0:
        pytest.skip("this file system keeps its files in memory")
    return paths


@pytest.mark.parametrize(
    "wrap",
    [
        lambda paths: paths,
        lambda paths: [str(path) for path in paths],
        lambda paths: tuple(paths),
        lambda paths: [(path, 0) for path in paths],
        lambda paths: [(0, str(path)) for path in paths],
        lambda paths: [{"image": str(path), "boxes": [[1.0, 2.0]]} for path in paths],
        lambda paths: dict(enumerate(paths)),
        lambda paths: {str(path): number for number, path in enumerate(paths)},
        lambda paths: [Named(0, str(path)) for path in paths],
        lambda paths: [Slotted(0, str(path)) for path in paths],
        lambda paths: np.array([str(path) for path in paths]),
        lambda paths: np.array([str(path) for path in paths]).astype(np.bytes_),
        lambda paths: np.array([str(path) for path in paths], dtype=object),
        lambda paths: SimpleNamespace(entries=[str(path) for path in paths]),
    ],
)
def test_paths_are_found_however_they_are_kept(
    images: list[Path], wrap: Callable[[list[Path]], Any]
) -> None:
    dataset = Holder(classes=["cat", "dog"], labels=list(range(1000)), paths=wrap(images))
    assert files_of(dataset) == images


@pytest.mark.parametrize("name", ["root", "image_folder"])
def test_relative_paths_begin_here_or_in_a_folder_of_the_dataset(
    folder: Path, images: list[Path], name: str
) -> None:
    listed = [image.name for image in images[:2]]
    assert files_of(Holder(**{name: "images", "files": listed})) == images[:2]
    assert files_of(Holder(files=["images/2.jpg", "not/there.jpg"])) == images[2:]


def test_an_imagefolder_and_what_wraps_it(torchvision: Any, images: list[Path]) -> None:
    inner = torchvision.datasets.ImageFolder(str(images[0].parent.parent))
    dataset = ConcatDataset([TensorDataset(torch.ones(3)), Subset(inner, [0, 1])])
    assert sorted(files_of(dataset)) == images


def test_columns_of_a_dataframe(images: list[Path]) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"label": [0, 1, 2], "file": [path.name for path in images]})
    assert files_of(Holder(root=images[0].parent, table=table)) == images
    assert files_of(Holder(root=images[0].parent, names=table["file"])) == images


def test_a_long_list_is_read_to_its_end(images: list[Path]) -> None:
    paths = [str(images[0])] * 50_000 + ["nowhere"] * 1000 + [str(images[1])]
    assert files_of(Holder(paths=paths)) == images[:2]


def test_a_folder_of_which_no_file_is_named_counts_in_full(images: list[Path]) -> None:
    assert sorted(files_of(Holder(root="images", ids=["0", "1", "2"]))) == images


def test_words_that_are_no_paths_lead_nowhere(images: list[Path]) -> None:
    words = Holder(
        separator="/", prefix="", here=".", up="..", nul="\0", long="x" * 5000, text="a\nb"
    )
    assert files_of(words) == []


def test_an_object_that_holds_itself_is_no_trouble(images: list[Path]) -> None:
    dataset = Holder(path=images[0])
    dataset.itself = [dataset, {"again": dataset}]
    assert files_of(dataset) == images[:1]


def test_a_memory_map_also_if_only_a_view_of_it_is_left(folder: Path) -> None:
    for name in ("whole", "part"):
        (folder / name).write_bytes(bytes(8192))
    whole = np.memmap(folder / "whole", mode="r")
    part = np.asarray(np.memmap(folder / "part", mode="r"))[10:20]
    assert set(files_of(Holder(whole=whole, part=part))) == {folder / "whole", folder / "part"}


def test_open_data_counts_but_no_outputs_and_no_programs(folder: Path) -> None:
    for name in ("data.bin", "log.txt", "code.py"):
        (folder / name).write_bytes(b"0")
    script = """
import torch
from ptools.loader_profile.cold import files_of
opened = open("data.bin", "rb"), open("code.py", "rb"), open("log.txt", "ab")
print(*files_of(object()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{folder / 'data.bin'}\n", done.stderr


def test_evicted_files_leave_the_page_cache(cached: list[Path]) -> None:
    assert resident(cached) == 1.0
    assert evict(cached[:2]) == 2 * (MIB + 1)
    assert resident(cached[:2]) == 0.0
    assert resident(cached) == pytest.approx(0.5)


def test_a_cold_file_is_read_from_the_disk(cached: list[Path]) -> None:
    script = "import resource, sys; open(sys.argv[1], 'rb').read(); \
print(resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512)"

    def read() -> int:
        command = [sys.executable, "-c", script, str(cached[0])]
        return int(subprocess.check_output(command))

    read()
    assert read() < MIB
    evict(cached)
    assert read() >= MIB


def test_evicting_changes_nothing_in_the_files(cached: list[Path]) -> None:
    cached[0].chmod(0o400)
    before = cached[0].read_bytes(), cached[0].stat().st_mtime_ns
    evict(cached)
    assert (cached[0].read_bytes(), cached[0].stat().st_mtime_ns) == before


def test_files_that_are_empty_or_gone_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert evict([tmp_path / "empty", tmp_path / "gone"]) == 0
    assert resident([tmp_path / "empty", tmp_path / "gone"]) == 0.0


def test_a_platform_that_cannot_evict_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(PtoolsError, match="page cache") as caught:
        evict([])
    assert "--cold" in str(caught.value.hint)
