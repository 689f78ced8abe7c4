import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from shards import write_shard
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    random_split,
)

from ptools.errors import UsageError
from ptools.image_lmdb.dataset import LMDBImageFolder
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase
from ptools.image_lmdb.shard import Shard

PER_CLASS = 12
CLASSES = ("Zebra", "cat", "dog")


@pytest.fixture(scope="module")
def imgs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of one size in the modes and formats that people have, one folder a class."""
    root = tmp_path_factory.mktemp("source") / "imgs"
    generator = np.random.default_rng(0)
    kinds = [("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("L", "JPEG"), ("P", "png")]
    names = [*(f"{i}" for i in range(PER_CLASS - 2)), os.fsdecode(b"caf\xe9"), "deep/below/it"]
    for name in CLASSES:
        for number, stem in enumerate(names):
            mode, extension = kinds[number % len(kinds)]
            pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            path = root / name / f"{stem}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert(mode).save(path)
    return root


@pytest.fixture(scope="module")
def packed(imgs: Path) -> Path:
    return Path(pack_lmdb(imgs, imgs.with_name("one.lmdb")).output)


@pytest.fixture(scope="module")
def shards(imgs: Path) -> Path:
    """The same in several files."""
    output = imgs.with_name("many.lmdb")
    assert pack_lmdb(imgs, output, shard_size=60 << 10).shards > 1
    return output


@pytest.fixture(params=["one file", "several files"])
def either(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("packed" if request.param == "one file" else "shards")


@pytest.fixture
def imagefolder(torchvision: Any, imgs: Path) -> Any:
    return torchvision.datasets.ImageFolder(str(imgs))


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """A set to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "copy.lmdb"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A file of so many one-byte images."""

    def write(images: int) -> Path:
        path = tmp_path_factory.mktemp("large") / "data.mdb"
        found = ((b"x", f"class/{number:08d}.png", 0) for number in range(images))
        return write_shard(path, found, ["class"])

    return write


def pixels_of(item: tuple[Any, int]) -> tuple[bytes, tuple[int, ...], int]:
    image, target = item
    pixels = np.asarray(image)
    return pixels.tobytes(), pixels.shape, target


def file_bytes(imgs: Path, dataset: LMDBImageFolder) -> list[bytes]:
    return [(imgs / path).read_bytes() for path, _ in dataset.samples]


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 8]))


def test_its_attributes_are_those_of_imagefolder(either: Path, imagefolder: Any) -> None:
    dataset = LMDBImageFolder(either)
    assert len(dataset) == len(imagefolder) == PER_CLASS * len(CLASSES)
    assert dataset.classes == imagefolder.classes == list(CLASSES)
    assert dataset.class_to_idx == imagefolder.class_to_idx
    assert dataset.targets == imagefolder.targets
    samples = [(os.path.relpath(path, imagefolder.root), n) for path, n in imagefolder.samples]
    assert list(dataset.samples) == list(dataset.imgs) == samples
    assert dataset.samples == samples
    assert dataset.samples != samples[:-1]
    assert dataset.samples[3] == samples[3]
    assert dataset.samples[-3:] == samples[-3:]


@pytest.mark.parametrize("loader", ["pil", "array"])
def test_its_items_are_those_of_imagefolder_bit_for_bit(
    either: Path, imagefolder: Any, loader: Any
) -> None:
    dataset = LMDBImageFolder(either, loader=loader)
    assert type(dataset[0][0]) is (Image.Image if loader == "pil" else np.ndarray)
    expected = [pixels_of(item) for item in imagefolder]
    assert [pixels_of(item) for item in dataset] == expected
    assert [pixels_of(item) for item in dataset.__getitems__(range(len(dataset)))] == expected


def test_transforms_are_applied_as_imagefolder_applies_them(
    packed: Path, imgs: Path, torchvision: Any
) -> None:
    both = [
        kind(
            str(place),
            transform=torchvision.transforms.PILToTensor(),
            target_transform=lambda target: -target,
        )
        for kind, place in ((LMDBImageFolder, packed), (torchvision.datasets.ImageFolder, imgs))
    ]
    for (ours, target), (theirs, expected) in zip(*both, strict=True):
        assert torch.equal(ours, theirs)
        assert target == expected


def test_a_loader_of_ones_own_gets_the_bytes_of_the_file(packed: Path, imgs: Path) -> None:
    dataset = LMDBImageFolder(packed, loader=bytes)
    assert [data for data, _ in dataset] == file_bytes(imgs, dataset)


def test_an_unknown_loader_is_refused(packed: Path) -> None:
    with pytest.raises(UsageError, match="'cv2' is no loader"):
        LMDBImageFolder(packed, loader="cv2")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int8, torch.tensor, int])
def test_any_kind_of_integer_is_an_index(either: Path, kind: Callable[[int], Any]) -> None:
    dataset = LMDBImageFolder(either, loader=bytes)
    everything = list(dataset)
    for index in (0, 7, len(dataset) - 1):
        assert dataset[kind(index)] == everything[index]
        assert dataset.samples[kind(index)] == dataset.samples[index]
    if kind is not np.uint8:
        assert dataset[kind(-1)] == everything[-1]
        assert dataset[kind(-len(dataset))] == everything[0]


@pytest.mark.parametrize("index", [36, -37, 1 << 70])
def test_an_index_past_the_ends_is_an_index_error(either: Path, index: int) -> None:
    dataset = LMDBImageFolder(either)
    for call in (dataset.__getitem__, dataset.samples.__getitem__):
        with pytest.raises(IndexError, match=f"{index}"):
            call(index)
    with pytest.raises(IndexError):
        dataset.__getitems__([0, index])


def test_what_is_no_integer_is_no_index(packed: Path) -> None:
    with pytest.raises(TypeError):
        LMDBImageFolder(packed)[1.5]  # type: ignore[index]


@pytest.mark.parametrize("context", [None, "fork", "spawn", "forkserver"])
def test_a_dataloader_gives_every_image_however_its_workers_start(
    either: Path, imgs: Path, context: str | None
) -> None:
    dataset = LMDBImageFolder(either, loader=zlib.crc32)
    assert dataset[0] and dataset.targets  # the parent has it open
    loader = DataLoader(
        dataset, batch_size=5, num_workers=2 if context else 0, multiprocessing_context=context
    )
    batches = [(checksums.tolist(), targets.tolist()) for checksums, targets in loader]
    expected = [zlib.crc32(data) for data in file_bytes(imgs, dataset)]
    assert [one for checksums, _ in batches for one in checksums] == expected
    assert [one for _, targets in batches for one in targets] == dataset.targets


def test_a_dataloader_collates_arrays(packed: Path) -> None:
    dataset = LMDBImageFolder(packed, loader="array")
    images, _ = next(iter(DataLoader(dataset, batch_size=4)))
    assert images.dtype == torch.uint8
    assert torch.equal(images[3], torch.from_numpy(dataset[3][0]))


def test_a_dataloader_fetches_a_batch_at_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    fetch = LMDBImageFolder.__getitems__

    def watched(self: LMDBImageFolder, indices: list[int]) -> Any:
        batches.append(list(indices))
        return fetch(self, indices)

    monkeypatch.setattr(LMDBImageFolder, "__getitems__", watched)
    dataset = LMDBImageFolder(packed, loader=len)
    list(DataLoader(dataset, batch_size=12))
    list(DataLoader(Subset(dataset, range(30, 36)), batch_size=6))
    assert batches == [list(range(i, i + 12)) for i in (0, 12, 24)] + [list(range(30, 36))]


def test_it_can_be_split_joined_and_sampled(either: Path) -> None:
    dataset = LMDBImageFolder(either, loader=zlib.crc32)
    everything = list(dataset)

    train, val = random_split(dataset, [30, 6], generator=torch.Generator().manual_seed(0))
    assert sorted([*train, *val]) == sorted(everything)
    assert [Subset(dataset, [35, 0])[i] for i in (0, 1)] == [everything[35], everything[0]]
    assert list(ConcatDataset([dataset, dataset])) == everything * 2

    halves = [DistributedSampler(dataset, num_replicas=2, rank=rank) for rank in (0, 1)]
    found = [item for half in halves for item in map(dataset.__getitem__, half)]
    assert sorted(found) == sorted(everything)

    batches = BatchSampler(RandomSampler(dataset), 7, drop_last=False)
    checksums = [one for batch, _ in DataLoader(dataset, batch_sampler=batches) for one in batch]
    assert sorted(map(int, checksums)) == sorted(checksum for checksum, _ in everything)


def test_an_index_may_come_twice_in_a_batch_and_in_any_order(either: Path) -> None:
    dataset = LMDBImageFolder(either, loader=bytes)
    indices = [35, 0, 17, 0, -1, 20, 35]
    assert dataset.__getitems__(indices) == [dataset[index] for index in indices]
    assert dataset.__getitems__([]) == []


def test_datasets_and_py_lmdb_share_a_file(packed: Path, imgs: Path) -> None:
    with lmdb.open(str(packed), readonly=True, lock=False) as environment:
        one, other = (LMDBImageFolder(packed, loader=bytes) for _ in range(2))
        with environment.begin() as transaction:
            stored = [transaction.get(i.to_bytes(8, "big")) for i in range(len(one))]
        assert [data for data, _ in one] == [data for data, _ in other] == stored
        assert stored == file_bytes(imgs, one)


def test_two_hundred_readers_in_one_process(either: Path) -> None:
    readers = [LMDBImageFolder(either, loader=bytes) for _ in range(200)]
    assert len({reader[index % 36] for index, reader in enumerate(readers)}) == 36


def test_threads_may_share_it(either: Path) -> None:
    indices = random.Random(0).choices(range(36), k=2000)
    expected = list(LMDBImageFolder(either, loader=bytes))
    dataset = LMDBImageFolder(either, loader=bytes)  # whose shards the threads open
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(dataset.__getitem__, indices)) == [expected[i] for i in indices]


def test_a_read_only_set_is_enough_and_nothing_is_written(copy: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
    for file in before:
        file.chmod(0o444)
    copy.chmod(0o555)
    try:
        dataset = LMDBImageFolder(copy, loader=bytes)
        assert len(list(dataset)) == len(dataset)
        assert {file: file.stat().st_mtime_ns for file in copy.iterdir()} == before
    finally:
        copy.chmod(0o755)


def test_it_leaves_no_descriptor_open_and_no_warning(packed: Path) -> None:
    script = """
import os, sys
from ptools.image_lmdb.dataset import LMDBImageFolder
dataset = LMDBImageFolder(sys.argv[1])
before = len(os.listdir("/dev/fd"))
for _ in range(3):
    LMDBImageFolder(sys.argv[1])[0]
assert len(os.listdir("/dev/fd")) == before
"""
    command = [sys.executable, "-W", "always", "-c", script, str(packed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "ResourceWarning" in done.stderr) == (0, False), done.stderr


def test_a_pickle_brings_the_dataset_back(either: Path) -> None:
    dataset = LMDBImageFolder(either, loader="array", target_transform=abs)
    assert dataset.targets
    again = pickle.loads(pickle.dumps(dataset))
    assert list(map(pixels_of, again)) == list(map(pixels_of, dataset))
    assert (again.samples, again.targets) == (dataset.samples, dataset.targets)
    assert (again.classes, again.class_to_idx) == (dataset.classes, dataset.class_to_idx)


def test_a_pickle_is_small_however_many_images(large: Callable[[int], Path]) -> None:
    dataset = LMDBImageFolder(large(20_000), loader=len)
    assert len(dataset.targets) == len(dataset.samples) == 20_000
    assert len(pickle.dumps(dataset)) < 2000


def test_memory_does_not_grow_with_the_images(large: Callable[[int], Path]) -> None:
    def memory(path: Path) -> int:
        tracemalloc.start()
        try:
            dataset = LMDBImageFolder(path, loader=len)
            assert dataset[len(dataset) - 1] == (1, 0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = large(100), large(20_000)
    memory(few)  # what is imported and cached once
    assert memory(many) < memory(few) + 20_000
    assert memory(many) < 1 << 20


def test_one_file_of_a_set_is_a_dataset(shards: Path, packed: Path) -> None:
    whole = list(LMDBImageFolder(shards, loader=bytes))
    files = sorted(shards.glob("*.mdb"))
    parts = [LMDBImageFolder(file, loader=bytes) for file in files]
    assert [item for part in parts for item in part] == whole
    assert all(part.classes == list(CLASSES) for part in parts)
    assert list(LMDBImageFolder(packed / "data.mdb", loader=bytes)) == whole


def test_class_numbers_go_by_name(imgs: Path, tmp_path: Path) -> None:
    shutil.copytree(imgs, tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "cat")
    pack_lmdb(tmp_path / "val")
    train = {"Zebra": 0, "cat": 1, "dog": 2}
    val = LMDBImageFolder(tmp_path / "val.lmdb", loader=bytes, class_to_idx=train)
    expected = [0] * PER_CLASS + [2] * PER_CLASS
    assert [target for _, target in val] == val.targets == expected
    assert [target for _, target in val.samples] == expected
    assert val.samples[-1][1] == 2
    assert (val.classes, val.class_to_idx) == (list(CLASSES), train)
    assert LMDBImageFolder(tmp_path / "val.lmdb").class_to_idx == {"Zebra": 0, "dog": 1}


def test_class_numbers_are_needed_for_every_class(packed: Path) -> None:
    for lacking in ({"Zebra": 0, "cat": 1}, {}):
        with pytest.raises(UsageError, match=r"no number for .*'dog'") as caught:
            LMDBImageFolder(packed, class_to_idx=lacking)
        assert str(packed) in caught.value.message


def test_an_image_that_cannot_be_decoded_is_named(imgs: Path, tmp_path: Path) -> None:
    (tmp_path / "imgs" / "cat").mkdir(parents=True)
    shutil.copy(imgs / "cat" / "0.jpg", tmp_path / "imgs" / "cat")
    (tmp_path / "imgs" / "cat" / "bad.jpg").write_bytes(b"no image")
    output = pack_lmdb(tmp_path / "imgs", check="none").output
    for loader in ("pil", "array"):
        dataset = LMDBImageFolder(output, loader=loader)  # type: ignore[arg-type]
        dataset[0]
        with pytest.raises(OSError, match=r"image 1 \('cat/bad\.jpg'\).*cannot identify"):
            dataset[1]


def test_an_error_of_a_loader_of_ones_own_keeps_its_kind_and_names_the_image(packed: Path) -> None:
    def loader(data: bytes) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        LMDBImageFolder(packed, loader=loader)[1]
    assert any("image 1 ('Zebra/1.png')" in note for note in caught.value.__notes__)


def test_a_flipped_bit_in_an_image_is_found(copy: Path) -> None:
    dataset = LMDBImageFolder(copy, loader=bytes)
    file = copy / "data.mdb"
    flip(file, Shard(file).row(5).offset + 100)
    with pytest.raises(DamagedDatabase, match=r"data\.mdb: image 5 \('Zebra/5\.jpg'\) is damaged"):
        dataset[5]
    with pytest.raises(DamagedDatabase):
        dataset.__getitems__([4, 5])
    assert dataset[4] and dataset[6]


def test_a_flipped_bit_in_a_row_is_found(copy: Path) -> None:
    file = copy / "data.mdb"
    content = file.read_bytes()
    record = content.index(b"ptoolsIM")  # the layout in the first lines of record.py
    rows = record + 64 + int.from_bytes(content[record + 16 : record + 24], "little")
    flip(file, rows + 32 * 5 + 8)  # the label of image 5
    dataset = LMDBImageFolder(copy, loader=bytes)
    for call in (lambda: dataset[5], lambda: dataset.targets, lambda: dataset.samples[5]):
        with pytest.raises(DamagedDatabase, match=r"data\.mdb: the metadata of image 5 is damaged"):
            call()
    assert dataset[4] and dataset[6]


@pytest.mark.parametrize("keep", [0, 100, 5000, 0.5, -1])
def test_a_file_that_is_cut_short_is_refused(copy: Path, keep: float) -> None:
    file = copy / "data.mdb"
    size = file.stat().st_size
    left = int(size * keep) if 0 < keep < 1 else int(keep) % size
    os.truncate(file, left)
    with pytest.raises(DamagedDatabase, match=rf"data\.mdb has {left:,} of {size:,} bytes"):
        LMDBImageFolder(copy)
    with pytest.raises(NotADatabase if left < 256 else DamagedDatabase, match=r"data\.mdb"):
        LMDBImageFolder(file)


def test_a_file_cut_short_while_it_is_open_raises_and_does_not_kill(copy: Path) -> None:
    script = """
import os, sys
from ptools.image_lmdb.dataset import LMDBImageFolder
from ptools.image_lmdb.errors import DamagedDatabase
dataset = LMDBImageFolder(sys.argv[1], loader=bytes)
assert dataset[7]
os.truncate(sys.argv[1] + "/data.mdb", 8192)
for call in (lambda: dataset[7], lambda: dataset.__getitems__([7, 8])):
    try:
        call()
    except DamagedDatabase as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # SIGBUS would be -7
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(str(copy / "data.mdb") in line and "image 7" in line for line in lines)


def test_a_missing_set_or_file_is_told(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(NotADatabase, match="there is no"):
        LMDBImageFolder(tmp_path / "nothing.lmdb")
    copy = Path(shutil.copytree(shards, tmp_path / "copy.lmdb"))
    (copy / "data-00001.mdb").unlink()
    with pytest.raises(DamagedDatabase, match=r"data-00001\.mdb is missing"):
        LMDBImageFolder(copy)


def test_an_unfinished_set_is_told(copy: Path) -> None:
    (copy / "meta.json").unlink()
    part = copy.with_name("copy.lmdb.part")
    part.mkdir()
    copy.rename(part / "set")
    for path in (copy, part):
        with pytest.raises(NotADatabase, match=f"{path.name} is not finished") as caught:
            LMDBImageFolder(path)
        assert "same ptools pack-lmdb command again" in str(caught.value.hint)


def test_a_set_without_its_metadata_is_told(copy: Path) -> None:
    (copy / "meta.json").unlink()
    with pytest.raises(NotADatabase, match=r"has no meta\.json"):
        LMDBImageFolder(copy)
    assert len(LMDBImageFolder(copy / "data.mdb")) == 36


def test_a_set_of_a_newer_version_is_told(copy: Path) -> None:
    meta, file = copy / "meta.json", copy / "data.mdb"
    old = meta.read_text()
    meta.write_text(json.dumps({**json.loads(old), "version": 2}))
    with pytest.raises(NotADatabase, match=r"meta\.json was written in version 2") as caught:
        LMDBImageFolder(copy)
    assert "--upgrade ptools" in str(caught.value.hint)
    meta.write_text(old)
    version_at = file.read_bytes().index(b"ptoolsIM") + 8
    with file.open("r+b") as stream:
        stream.seek(version_at)
        stream.write(b"\2")
    with pytest.raises(NotADatabase, match=r"data\.mdb was written in version 2"):
        LMDBImageFolder(copy)[0]


def test_a_file_of_another_set_is_told(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy.lmdb"))
    meta = json.loads((copy / "meta.json").read_text())
    meta["shards"][0]["images"] -= 1
    (copy / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DamagedDatabase, match="images, not"):
        LMDBImageFolder(copy)[0]


def test_what_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" + bytes(9000))
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("photo.jpg", "empty", "pipe"):
        with pytest.raises(NotADatabase, match=name):
            LMDBImageFolder(tmp_path / name)


def test_an_address_is_not_taken_for_a_path() -> None:
    with pytest.raises(NotADatabase, match=r"s3://bucket/x\.lmdb is not on a disk"):
        LMDBImageFolder("s3://bucket/x.lmdb")
