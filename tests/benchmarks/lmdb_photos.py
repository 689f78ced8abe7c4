"""What the LMDB benchmarks share: made images, and a page cache without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def make_photos(root: Path, classes: int = 8, each: int = 1000) -> None:
    """JPEGs of 500 x 375 with the grain of photos, about 90 KB each, in class folders."""
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)

    def noise(width: int, height: int) -> np.ndarray:
        small = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        return cv2.resize(small, (500, 375), interpolation=cv2.INTER_CUBIC)

    for path in _paths(root, classes, each, "JPEG"):
        grain = generator.integers(0, 60, (375, 500, 1), dtype=np.uint8)
        image = np.clip(noise(16, 12) * 0.6 + noise(125, 94) * 0.3 + grain, 0, 255)
        cv2.imwrite(str(path), image.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 86])


def make_thumbnails(root: Path, classes: int = 10, each: int = 5000) -> None:
    """PNGs of 32 x 32, about 2 KB each, as CIFAR-10 is often unpacked."""
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    for path in _paths(root, classes, each, "png"):
        image = cv2.resize(generator.integers(0, 240, (8, 8, 3), dtype=np.uint8), (32, 32))
        cv2.imwrite(str(path), image + generator.integers(0, 16, (32, 32, 3), dtype=np.uint8))


def _paths(root: Path, classes: int, each: int, extension: str) -> list[Path]:
    for number in range(classes):
        (root / f"class{number}").mkdir(parents=True)
    return [
        root / f"class{number}" / f"{index:05d}.{extension}"
        for number in range(classes)
        for index in range(each)
    ]


def made(kind: str, root: Path) -> Path:
    """Make the images in a process of its own: a child's peak size starts at its parent's."""
    subprocess.run([sys.executable, __file__, kind, str(root)], check=True)
    return root


def evict(*places: Path) -> None:
    """Have the system forget what it has read of these files and folders."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")  # names and sizes as well
        return
    except OSError:  # only root may
        pass
    for place in places:
        for file in place.rglob("*") if place.is_dir() else [place]:
            if file.is_file():
                with file.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    {"photos": make_photos, "thumbnails": make_thumbnails}[sys.argv[1]](Path(sys.argv[2]))
