"""Write a set as WebDataset tar files: https://github.com/webdataset/webdataset#the-webdataset-format."""

import json
import posixpath
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError, UsageError
from ptools.files import free_space, human_bytes
from ptools.image_lmdb.database import Images, open_images
from ptools.image_lmdb.info import DatabaseInfo, describe
from ptools.image_lmdb.newfolder import new_folder
from ptools.image_lmdb.progress import Listener, Meter
from ptools.image_lmdb.scan import IMAGE_EXTENSIONS

# WebDataset unpickles members by their extension (.pyd, .pth ...): no path may choose one of those.
_EXTENSIONS = {*IMAGE_EXTENSIONS, ".gif", ".avif", ".jp2"}
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_OVERHEAD = 6 * _BLOCK  # an image: three headers, its padding, and two small members


@dataclass(frozen=True)
class ExportReport:
    """Tar files of a set."""

    path: Path
    output: Path
    images: int
    bytes: int  # of the images
    file_bytes: int
    shards: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes, time in seconds."""
        return {**asdict(self), "path": str(self.path), "output": str(self.output)}


def export_wds(
    path: str | Path,
    output: str | Path,
    shard_size: int = 1 << 30,
    progress: Listener | None = None,
) -> ExportReport:
    """Write `OUTPUT/shard-000000.tar` and so on, for WebDataset and whatever else reads it.

    Each image is three members: `KEY.jpg` (or as its path ends; `KEY.bin` if that is unknown) with
    its bytes, `KEY.cls` with its class number, and `KEY.json` with its path and class. The same set
    gives the same bytes. The folder gets its name when it is complete and on the disk.

    Args:
        shard_size: the most bytes of one file, if not for one image alone; 0 for no limit.

    Raises:
        UsageError: the output exists, or cannot be placed there.
        DamagedDatabase: an image is damaged.
        PtoolsError: the disk is full.
    """
    started = time.monotonic()
    if shard_size < 0:
        raise UsageError(f"{shard_size} is no size", "give a number of bytes, 0 for no limit")
    info = describe(path)
    output = Path(output)
    meter = Meter(progress, "exporting", info.images, info.bytes)
    with new_folder(output, inputs=info.path) as part:
        for old in part.glob("shard-*.tar"):  # of a run that was interrupted
            old.unlink()
        _check_space(info, part)
        sizes = list(_write_shards(open_images(info.path), part, shard_size, meter))
    seconds = time.monotonic() - started
    return ExportReport(
        info.path, output, meter.images, meter.bytes, sum(sizes), len(sizes), seconds
    )


def _check_space(info: DatabaseInfo, part: Path) -> None:
    needed = (info.file_bytes if info.bytes is None else info.bytes) + _OVERHEAD * info.images
    free = free_space(part)
    if needed > free:
        raise PtoolsError(
            f"{part} needs up to {human_bytes(needed)}, and {human_bytes(free)} are free",
            hint="free some space there, or give another place with -o",
        )


def _write_shards(images: Images, folder: Path, shard_size: int, meter: Meter) -> Iterator[int]:
    """Write all tar files; yields their sizes."""
    samples = _samples(images, meter)
    sample = next(samples, None)
    number = 0
    while sample is not None:
        with (folder / f"shard-{number:06d}.tar").open("wb") as file:
            written = 0
            while sample is not None:
                size = sum(map(len, sample))
                if shard_size and written and written + size + len(_END) > shard_size:
                    break
                file.writelines(sample)
                written += size
                sample = next(samples, None)
            file.write(_END)
            yield written + len(_END)
        number += 1


def _samples(images: Images, meter: Meter) -> Iterator[list[bytes]]:
    for index, path in enumerate(images.paths()):
        (image,) = images.fetch([index])
        key = f"{index:08d}"
        about = {"path": path, "class": images.classes[image.label]}
        yield [
            *_member(key + _extension(path), image.data),
            *_member(key + ".cls", str(image.label).encode()),
            *_member(key + ".json", json.dumps(about).encode()),
        ]
        meter.add(1, len(image.data))


def _extension(path: str) -> str:
    extension = posixpath.splitext(path)[1].lower()
    return extension if extension in _EXTENSIONS else ".bin"


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    header = tarfile.TarInfo(name)  # with no time, no owner and mode 644
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % _BLOCK)
