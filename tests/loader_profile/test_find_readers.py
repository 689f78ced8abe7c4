"""What reads and decodes, seen from a forked process, as `instrument` changes its own."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch.utils.data import DataLoader

from ptools.loader_profile import find, probe, profile_loader
from ptools.loader_profile.isolate import isolated
from ptools.loader_profile.observe import How, observe
from ptools.loader_profile.rebuild import settings_of

Counts = dict[tuple[str, str], float]  # calls by name and kind


def counts(dataset: Any, indices: range = range(2)) -> Counts:
    """The calls of each stage while these samples are fetched."""

    def fetch() -> Counts:
        find.instrument(dataset)
        for index in indices:
            dataset[index]
        return {key: values[0] for key, values in probe._here().stages.items()}

    return isolated(fetch, 30)


@pytest.fixture
def image_folder(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    (folder / "images" / "cats").mkdir(parents=True)
    for number in range(2):
        image.new("RGB", (64, 64), (number, 9, 9)).save(folder / f"images/cats/{number}.jpg")
    return folder / "images"


MODULE = """
import numpy
from numpy import load
from PIL.Image import open as read

class Compose:
    def __init__(self, transforms):
        self.transforms = transforms
    def __call__(self, value):
        for transform in self.transforms:
            value = transform(value)
        return value

def halve(value):
    return value

CHAIN = Compose([halve])

class Images:
    def __init__(self, paths):
        self.paths = paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        path = str(self.paths[index])
        if path.endswith(".npy"):
            return CHAIN(load(path))
        image = read(path)
        image.load()
        image.convert("L")
        return CHAIN(image.resize((8, 8)))
"""


@pytest.fixture
def module(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("PIL.Image")
    monkeypatch.syspath_prepend(str(write("images_of_mine.py", MODULE).parent))
    import images_of_mine

    return images_of_mine


def test_a_chain_beside_the_dataset_is_found(module: ModuleType, image_folder: Path) -> None:
    dataset = module.Images(sorted(image_folder.rglob("*.jpg")))
    assert counts(dataset)["halve", "transform"] == 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_readers_imported_by_name_are_found(
    suffix: str, module: ModuleType, image_folder: Path
) -> None:
    from PIL import Image

    path = image_folder / f"image.{suffix}"
    words = {"compression": "tiff_lzw"} if suffix == "tiff" else {}
    Image.effect_noise((1000, 1000), 50).convert("RGB").save(path, **words)
    assert counts(module.Images([path]), range(1)) == {
        ("PIL.open", "decode"): 1,
        ("PIL.load", "decode"): 1,
        ("halve", "transform"): 1,
    }


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_what_decodes_has_the_time_of_it(suffix: str, module: ModuleType, folder: Path) -> None:
    from PIL import Image

    path = folder / f"image.{suffix}"
    words = {"compression": "tiff_lzw"} if suffix == "tiff" else {}
    Image.effect_noise((1000, 1000), 50).convert("RGB").save(path, **words)

    def alone() -> float:
        image = Image.open(path)
        began = time.thread_time()
        image.load()
        return time.thread_time() - began

    def fetch() -> float:
        dataset = module.Images([path])
        find.instrument(dataset)
        dataset[0]
        found = probe._here().stages
        return sum(values[1] for (_, kind), values in found.items() if kind == "decode")

    assert isolated(fetch, 30) > 0.7 * min(alone() for _ in range(5))


def test_arrays_are_read_from_storage(module: ModuleType, folder: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.save(folder / "a.npy", numpy.zeros(3))
    found = counts(module.Images([folder / "a.npy"]), range(1))
    assert found["numpy.load", "storage"] == 1
    assert {kind for _, kind in found} == {"storage", "transform"}


READER = """
import time

def read(path):
    time.sleep(0.005)
    return [0.0]
"""


class Sounds:
    """What reads them is imported only when the first one is wanted."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        import soundfile

        return soundfile.read(f"{index}.wav")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reader_imported_by_the_first_batch_is_found(
    workers: int, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write("soundfile.py", READER).parent))
    monkeypatch.delitem(sys.modules, "soundfile", raising=False)
    loader = DataLoader(Sounds(), batch_size=4)  # type: ignore[arg-type]
    settings = settings_of(loader).with_workers(workers)
    found = isolated(lambda: observe(loader, settings, 0.2, 4, How()), 30)
    assert "soundfile" not in sys.modules
    for record in found.records:
        assert not record.is_first
        calls, *_, waiting = record.stages["soundfile.read", "decode"]
        assert calls == 4
        assert waiting == pytest.approx(0.02, rel=0.2)


def test_readers_are_timed_once_however_often_they_are_looked_for(
    module: ModuleType, image_folder: Path
) -> None:
    dataset = module.Images(sorted(image_folder.rglob("*.jpg")))

    def fetch() -> Counts:
        for _ in range(3):
            find.instrument_readers()
        dataset[0]
        return {key: values[0] for key, values in probe._here().stages.items()}

    assert isolated(fetch, 30) == {("PIL.open", "decode"): 1, ("PIL.load", "decode"): 1}


def test_nothing_stays_timed_here(module: ModuleType, image_folder: Path) -> None:
    from PIL import Image, ImageFile

    numpy = sys.modules["numpy"]
    dataset = module.Images(sorted(image_folder.rglob("*.jpg")))
    before = Image.open, ImageFile.ImageFile.load, numpy.load, module.read, module.load
    held = dict(vars(dataset)), list(module.CHAIN.transforms)
    profile_loader(DataLoader(dataset, collate_fn=len, num_workers=1), budget=0.5)
    after = Image.open, ImageFile.ImageFile.load, numpy.load, module.read, module.load
    assert after == before
    assert held == (dict(vars(dataset)), list(module.CHAIN.transforms))
    assert probe._probe is None


def test_torchvisions_folder_of_images(torchvision: Any, image_folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    def crop(image: Any) -> Any:
        return image.crop((0, 0, 8, 8))

    def double(label: int) -> int:
        return 2 * label

    dataset = ImageFolder(str(image_folder), transform=crop, target_transform=double)
    assert counts(dataset) == {
        ("PIL.open", "decode"): 2,
        ("PIL.load", "decode"): 2,
        ("crop", "transform"): 2,
        ("double", "transform"): 2,
    }
