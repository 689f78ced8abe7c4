"""What takes time in a planted loader: on a core, asleep, behind a lock, from a disk."""

import io
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

FORK = multiprocessing.get_context("fork")
PAGE = 4096
FILE = 512 << 20  # bytes: more than a run reads


def spin(seconds: float) -> None:
    """Keep a core busy for that long, however many others want it."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """With processes beside this one that never rest."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


class Samples(Dataset):
    """Each sample calls `work` in turn, then the transforms."""

    def __init__(
        self,
        *work: Callable[[], Any],
        transforms: Sequence[Callable[[Any], Any]] = (),
        length: int = 1_000_000,
    ) -> None:
        self.work = work
        self.transform = Compose(transforms)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        sample = torch.zeros(8)
        for work in self.work:
            made = work()
            sample = sample if made is None else made
        return self.transform(sample)


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, sample: Any) -> Any:
        for transform in self.transforms:
            sample = transform(sample)
        return sample


class Transform:
    """One that takes its time and changes nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, sample: Any) -> Any:
        spin(self.seconds)
        return sample


class Crop(Transform): ...


class Flip(Transform): ...


class Jitter(Transform): ...


class Blur(Transform): ...


class Doze(Transform):
    def __call__(self, sample: Any) -> Any:
        time.sleep(self.seconds)
        return sample


class Pages:
    """Some pages of a large file, as a database would read them."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count
        with path.open("wb") as file:
            for _ in range(FILE >> 20):
                file.write(bytes(1 << 20))

    def __call__(self) -> None:
        file = os.open(self.path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(self.count):
            os.pread(file, PAGE, random.randrange(FILE // PAGE) * PAGE)
        os.close(file)


class Many:
    """A dict of many small tensors that costs nothing to make."""

    def __init__(self, count: int) -> None:
        self.sample = {str(key): torch.zeros(4) for key in range(count)}

    def __call__(self) -> dict[str, torch.Tensor]:
        return self.sample


class Locked:
    """Work that one worker at a time can do."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.lock = FORK.Lock()

    def __call__(self) -> None:
        with self.lock:
            time.sleep(self.seconds)


def rarely(every: int, seconds: float) -> None:
    """Sleep, on average in one call of so many."""
    if random.randrange(every) == 0:
        time.sleep(seconds)


def multiply(side: int) -> None:
    """In the threads of numpy's own library, which DataLoader leaves as they are."""
    matrix = np.ones((side, side), np.float32)
    matrix @ matrix


def with_pillow(data: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(data))
    image.load()
    return torch.tensor(image.getpixel((0, 0)))


def with_opencv(data: bytes) -> torch.Tensor:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return torch.from_numpy(image[0, 0].copy())


def collated(seconds: float, samples: list[Any]) -> Any:
    """A collate function that takes its time."""
    spin(seconds)
    return default_collate(samples)


def start(seconds: float, worker_id: int) -> None:
    """A worker_init_fn that takes its time."""
    time.sleep(seconds)
