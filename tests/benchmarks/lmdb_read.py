"""How fast images come out of a packed set, beside plain files and other containers.

Run `python tests/benchmarks/lmdb_read.py [ROUNDS [PHOTOS THUMBNAILS]]` (5 rounds if not given) in a
folder on the disk to measure. PHOTOS and THUMBNAILS are folders of class folders; without them
8,000 JPEGs of 90 KB and 50,000 PNGs of 2 KB are made, which needs 3 GB in all. webdataset is left
out if it is not installed.

Warm: random batches of 64 through a DataLoader without workers, the files in the page cache; each
image is decoded, photos are cropped to 224 x 224, and all become tensors. The limit is the same
from bytes that are in memory already. The ways take turns; times are CPU times, medians over the
rounds, and a ratio is the median of the ratios of a round. torch and OpenCV have one thread each.
Cold: 1500 random images in batches of 64, read but not decoded, after the page cache has
forgotten the files.
"""

from __future__ import annotations

import pickle
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
from harness import import_torchvision, show, show_versions
from lmdb_photos import evict, made
from torch.utils.data import DataLoader, Dataset

from ptools.image_lmdb.dataset import LMDBImageFolder
from ptools.image_lmdb.decode import array, pil
from ptools.image_lmdb.engine import pack_lmdb

BATCH = 64
Way = Callable[[], Iterable[Any]]  # batches of images and labels


class Held(Dataset):
    """Bytes by index, from memory or an LMDB, and a decoder."""

    def __init__(self, get: Callable[[int], tuple[bytes, int]], decode: Callable[[bytes], Any]):
        self.get, self.decode = get, decode

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data, label = self.get(index)
        return cropped(self.decode(data)), label


def cropped(image: Any) -> torch.Tensor:
    """The middle 224 x 224, or all of a smaller image, as a C x H x W tensor."""
    pixels = np.asarray(image)
    top, left = (max(0, side - 224) // 2 for side in pixels.shape[:2])
    pixels = pixels[top : top + 224, left : left + 224]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def pickled_lmdb(images: Mapping[int, tuple[bytes, int]], path: Path) -> Callable[[int], Any]:
    """An LMDB as the widespread scripts write and read it."""
    environment = lmdb.open(str(path), subdir=False, map_size=4 << 30)
    with environment, environment.begin(write=True) as transaction:
        for index, image in images.items():
            transaction.put(str(index).encode(), pickle.dumps(image))
    environment = lmdb.open(
        str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False
    )

    def get(index: int) -> Any:
        with environment.begin() as transaction:
            return pickle.loads(transaction.get(str(index).encode()))

    return get


def webdataset_way(images: Mapping[int, tuple[bytes, int]], path: Path) -> Way | None:
    """A tar, in its order: it has no random access. Decoded as the limit is."""
    try:
        import webdataset
    except ImportError:
        return None
    with webdataset.TarWriter(str(path)) as writer:
        for index, (data, label) in images.items():
            writer.write({"__key__": f"{index:08d}", "image": data, "cls": label})

    def sample(parts: tuple[bytes, bytes]) -> tuple[torch.Tensor, int]:
        return cropped(array(parts[0])), int(parts[1])

    def batches() -> Iterable[Any]:
        dataset = webdataset.WebDataset(str(path), shardshuffle=False).to_tuple("image", "cls")
        return DataLoader(dataset.map(sample), batch_size=BATCH)

    return batches


def warm_ways(source: Path, packed: Path, indices: Sequence[int]) -> dict[str, Way]:
    stored = LMDBImageFolder(packed, loader=bytes)
    images = {index: stored[index] for index in indices}
    batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]

    def loads(dataset: Dataset) -> Way:
        return lambda: DataLoader(dataset, batch_sampler=batches)

    folder = import_torchvision().datasets.ImageFolder(str(source), cropped)
    naive = pickled_lmdb(images, packed.with_suffix(".pickled"))
    ways: dict[str, Way | None] = {
        'limit: memory, decoder of loader="array"': loads(Held(images.__getitem__, array)),
        'ptools, loader="array"': loads(LMDBImageFolder(packed, cropped, loader="array")),
        "limit: memory, PIL": loads(Held(images.__getitem__, pil)),
        'ptools, loader="pil"': loads(LMDBImageFolder(packed, cropped)),
        "ImageFolder (files, PIL)": loads(folder),
        "LMDB of pickles, PIL": loads(Held(naive, pil)),
        "webdataset, not shuffled": webdataset_way(images, packed.with_suffix(".tar")),
    }
    return {name: way for name, way in ways.items() if way is not None}


def compare_warm(title: str, ways: Mapping[str, Way], images: int, rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            assert sum(len(labels) for _, labels in way()) == images
            times[name].append((time.process_time() - start) / images)
    rows = []
    references = ('limit: memory, decoder of loader="array"', "ImageFolder (files, PIL)")
    for name, measured in times.items():
        speeds = []
        for reference in references:
            pairs = zip(times[reference][1:], measured[1:], strict=True)  # without the first round
            speeds.append(f"{statistics.median(a / b for a, b in pairs):.2f}")
        rows.append([name, f"{statistics.median(measured[1:]) * 1e6:.1f}", *speeds])
    show(title, ["", "CPU us an image", "speed / limit", "speed / ImageFolder"], rows)


def read_files(source: Path) -> Callable[[], Callable[[Sequence[int]], Any]]:
    files = [file for name in sorted(source.iterdir()) for file in sorted(name.iterdir())]
    return lambda: lambda batch: [files[index].read_bytes() for index in batch]


def read_lmdb(packed: Path, readahead: bool) -> Callable[[], Callable[[Sequence[int]], Any]]:
    def opened() -> Callable[[Sequence[int]], Any]:
        environment = lmdb.open(str(packed), readonly=True, lock=False, readahead=readahead)

        def read(batch: Sequence[int]) -> Any:
            with environment.begin() as transaction:
                return [transaction.get(index.to_bytes(8, "big")) for index in batch]

        return read

    return opened


def compare_cold(source: Path, packed: Path, rounds: int) -> None:
    ways = {
        "plain files": read_files(source),
        "py-lmdb, readahead=False": read_lmdb(packed, readahead=False),
        "py-lmdb, readahead=True": read_lmdb(packed, readahead=True),
        "ptools": lambda: LMDBImageFolder(packed, loader=len).__getitems__,
    }
    images = len(LMDBImageFolder(packed))
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        indices = random.Random(number).sample(range(images), min(1500, images))
        for name, opened in ways.items():
            evict(source, packed)
            start = time.perf_counter()
            read = opened()
            for first in range(0, len(indices), BATCH):
                read(indices[first : first + BATCH])
            speeds[name].append(len(indices) / (time.perf_counter() - start))
            del read  # closes it: what is mapped is not forgotten, nor opened a second time
    rows = []
    for name, measured in speeds.items():
        pairs = zip(measured, speeds["plain files"], strict=True)
        ratio = statistics.median(ours / files for ours, files in pairs)
        rows.append([name, f"{statistics.median(measured):,.0f}", f"{ratio:.2f}"])
    show("JPEGs, cold, random batches of 64", ["", "images a second", "times plain files"], rows)


def main(rounds: str = "5", photos: str | None = None, thumbnails: str | None = None) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    show_versions("ptools", "lmdb", "opencv-python", "pillow", "webdataset")
    given = [Path(folder).absolute() for folder in (photos, thumbnails) if folder]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        work = Path(folder).absolute()
        jpegs, pngs = given or [made(kind, work / kind) for kind in ("photos", "thumbnails")]
        for title, source, count in (
            ("JPEGs of 500 x 375, cropped to 224 x 224, warm", jpegs, 640),
            ("PNGs of 32 x 32, warm", pngs, 6400),
        ):
            packed = work / f"{source.name}.lmdb"
            total = pack_lmdb(source, packed).images
            indices = random.Random(0).sample(range(total), count)
            compare_warm(title, warm_ways(source, packed, indices), count, int(rounds))
        compare_cold(jpegs, work / f"{jpegs.name}.lmdb", int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
